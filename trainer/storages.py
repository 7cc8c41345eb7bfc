"""Which ranks see the same folder: one that all machines share, one on each machine's own disk, or anything between.

::

    with finding_storages(output) as storages:        # collective; makes the folder where it is not there
        storages.on_each(lambda: (output / "checkpoints").mkdir(exist_ok=True))

Nobody has to say what is shared. A rank leaves a token in the folder and all others look whether they see it; the
lowest of those who do not leaves the next one, until every rank has seen one. So a *storage* is a set of ranks, and its
lowest rank, the *leader*, does for it what has to be done once in a folder. On one shared folder that is rank 0.
"""

import contextlib
import errno
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from trainer.errors import BadInput, cannot_be_written
from trainer.ranks import rank_ranges
from trainer.tracking.console import Console

T = TypeVar("T")


@dataclass(frozen=True)
class Storages:
    """`leaders`: for each rank, the lowest one that sees the same folder. `hosts`: for each rank, its machine."""

    rank: int
    leaders: tuple[int, ...]
    hosts: tuple[str, ...]

    @classmethod
    def shared(cls) -> "Storages":
        """One storage, which all ranks see. Needs the process group."""
        world_size = dist.get_world_size()
        return cls(dist.get_rank(), (0,) * world_size, ("",) * world_size)

    @property
    def leader(self) -> int:
        """Of this rank's own storage."""
        return self.leaders[self.rank]

    @property
    def leads(self) -> bool:
        return self.leader == self.rank

    @property
    def all(self) -> list[int]:
        """Every storage, by its leader."""
        return sorted(set(self.leaders))

    @property
    def several(self) -> bool:
        return len(self.all) > 1

    def ranks_of(self, leader: int) -> list[int]:
        return [rank for rank, its_leader in enumerate(self.leaders) if its_leader == leader]

    def name(self, rank: int) -> str:
        """For people; where there are several storages, the machine matters."""
        return f"rank {rank} on {self.hosts[rank]}" if self.several else f"rank {rank}"

    def say(self, text: str) -> None:
        """Of a leader about its own storage, on the console that all ranks share."""
        Console(0).say(f"{self.name(self.rank)}: {text}" if self.rank else text)

    def on_each(self, action: Callable[[], T]) -> dict[int, T]:
        """Run `action` on every leader; their results by leader, on every rank, after all are done. Collective.

        What one raises, every rank raises: nobody is left waiting. A `BadInput` then names the rank, if it is not 0."""
        outcome: tuple[Any, Exception | None] = (None, None)
        if self.leads:
            try:
                outcome = (action(), None)
            except Exception as error:
                outcome = (None, error)
        outcomes: list[Any] = [None] * len(self.leaders)
        dist.all_gather_object(outcomes, outcome)
        for rank, (_, raised) in enumerate(outcomes):
            if isinstance(raised, BadInput) and rank:
                raise BadInput(f"{self.name(rank)}: {raised}")
            if raised is not None:
                raise raised
        return {leader: outcomes[leader][0] for leader in self.all}

    def describe(self) -> str:
        """One line on several of them."""
        shown = [f"{rank_ranges(self.ranks_of(leader))} ({self.hosts[leader]})" for leader in self.all]
        more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        return (
            f"not one folder but {len(shown)}: of ranks {', '.join(shown[:8])}{more}; each gets its own ranks' part of "
            "a checkpoint, and a resume gathers the parts"
        )


@contextmanager
def finding_storages(folder: Path) -> Iterator[Storages]:
    """The storages of `folder`, which is made on those that lack it. Collective.

    On leaving, the folders that were made for it are removed where nothing has come into them. Raises `BadInput` on
    every rank, naming one and its machine, if that one cannot write there."""
    rank, hosts = dist.get_rank(), [""] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname())
    leaders: list[int | None] = [None] * len(hosts)
    made: list[Path] = []
    try:
        while None in leaders:
            first = leaders.index(None)
            with _token_of(first, folder, made) as token:
                seen: list[Any] = [None] * len(hosts)
                refusal = None
                try:
                    sees = leaders[rank] is None and (rank == first or _sees(token))
                except OSError as error:
                    sees, refusal = True, _refusal(folder, error)
                dist.all_gather_object(seen, (sees, refusal))
            for its_rank, (sees, refusal) in enumerate(seen):
                if refusal is not None:
                    raise refusal
                if sees:
                    leaders[its_rank] = first
        yield Storages(rank, tuple(leader for leader in leaders if leader is not None), tuple(hosts))
    finally:
        for new in made:
            with contextlib.suppress(OSError):
                new.rmdir()


@contextmanager
def _token_of(first: int, folder: Path, made: list[Path]) -> Iterator[Path]:
    """A file that rank `first` leaves in `folder` while the block runs. Notes in `made` the folders that it makes."""
    outcome: list[Any] = [f".storage_{uuid.uuid4().hex}", None]
    if dist.get_rank() == first:
        try:
            _leave(folder / outcome[0], made)
        except OSError as error:
            outcome[1] = _refusal(folder, error)
    dist.broadcast_object_list(outcome, src=first)
    name, refusal = outcome
    if refusal is not None:
        raise refusal
    try:
        yield folder / name
    finally:
        if dist.get_rank() == first:
            (folder / name).unlink(missing_ok=True)


def _leave(token: Path, made: list[Path], attempts: int = 10) -> None:
    folder = token.parent
    try:
        made += [new for new in (folder, *folder.parents) if not new.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    except FileNotFoundError:  # another run has just removed what it had made and left empty
        if attempts == 1:
            raise
        _leave(token, made, attempts - 1)


def _sees(token: Path) -> bool:
    """Raises OSError where the token is seen, but nothing may be written beside it."""
    if not token.exists():
        return False
    if not os.access(token.parent, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return True


def _refusal(folder: Path, error: OSError) -> BadInput:
    refusal, rank = cannot_be_written(folder, error), dist.get_rank()
    return BadInput(f"rank {rank} on {socket.gethostname()}: {refusal}") if rank else refusal
