"""Finding the checkpoint to go on from: the newest whole one, checked by all ranks together.

`latest` is for people and is not read here: a checkpoint's directory and manifest say all there is to know, and a
pointer can only be stale.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from trainer.checkpoint.manifest import (
    MANIFEST,
    DamagedCheckpoint,
    Manifest,
    list_checkpoints,
    read_manifest,
    verify_file,
)
from trainer.errors import BadInput
from trainer.ranks import from_rank_zero

SECONDS_BETWEEN_LINES = 10.0


def checkpoint_candidates(root: Path, resume: str) -> list[Path]:
    """The checkpoints, newest first, that `--resume auto|never|PATH` allows to go on from; `root` is the run's own.

    PATH is a checkpoint or a run directory, whose newest one is meant and no other. Raises `BadInput` where `never`
    would overwrite checkpoints, where PATH holds none, and where a folder cannot be read."""
    if resume not in ("auto", "never"):
        return checkpoints_at(Path(resume), "--resume")[:1]
    try:
        present = list_checkpoints(root)
    except OSError as error:
        raise BadInput(f"{root}: cannot be read ({error.strerror}); mend that, or choose another --output") from None
    if present and resume == "never":
        raise BadInput(f"--resume never: {root} already holds {present[0].name}; choose another --output")
    return present


def checkpoints_at(path: Path, option: str) -> list[Path]:
    """The checkpoint `path` itself, or all of the run directory `path`, newest first; at least one.

    Raises `BadInput`, with the `option` that gave the path."""
    try:
        found = [path] if (path / MANIFEST).is_file() else list_checkpoints(path / "checkpoints")
    except OSError as error:
        raise BadInput(f"{option} {path}: cannot be read ({error.strerror}); mend that, or give another") from None
    if not found:
        raise BadInput(f"{option} {path}: no checkpoint there (give a run directory or a step_… directory)")
    return found


def first_whole(
    candidates: list[Path], resume: str, say: Callable[[str], None], verify_one: Callable[[Path], Manifest]
) -> Path | None:
    """The checkpoint among `checkpoint_candidates` to go on from; None = start anew.

    Raises `BadInput` where PATH was given and is not whole, and where there are checkpoints but none is: to start anew
    then would throw a run away."""
    if not candidates:
        return None
    try:
        if resume == "auto":
            return newest_whole(candidates, say, verify_one)
        verify_one(candidates[0])
    except DamagedCheckpoint as error:
        if resume == "auto":
            raise BadInput(f"{error}; mend one, or choose another --output") from None
        raise BadInput(f"--resume: {error}; give another checkpoint") from None
    return candidates[0]


def newest_whole(candidates: list[Path], say: Callable[[str], None], verify_one: Callable[[Path], Manifest]) -> Path:
    """The first candidate that `verify_one` does not refuse; damaged ones are named through `say` and passed over.

    Raises `DamagedCheckpoint` if none is whole."""
    for directory in candidates:
        try:
            verify_one(directory)
            return directory
        except DamagedCheckpoint as error:
            say(f"passing over a damaged checkpoint: {error}")
    raise DamagedCheckpoint(f"{candidates[0].parent}: none of its {len(candidates)} checkpoints is whole")


def verify_together(directory: Path, say: Callable[[str], None]) -> Manifest:
    """`manifest.verify`, with the files divided over the ranks. Collective; every rank returns or raises the same.

    `say` is told now and then how far rank 0 has come, which is about as far as all."""
    manifest = from_rank_zero(lambda: read_manifest(directory))
    mine = sorted(manifest.files)[dist.get_rank() :: dist.get_world_size()]
    progress = _Progress(directory.name, sum(manifest.files[name].bytes for name in mine), say)
    damage = None
    try:
        for name in mine:
            verify_file(directory, name, manifest.files[name], progress.file_read)
            progress.file_done(manifest.files[name].bytes)
    except DamagedCheckpoint as error:
        damage = str(error)
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, damage)
    if damage := next((text for text in found if text is not None), None):
        raise DamagedCheckpoint(damage)
    return manifest


class _Progress:
    """A line every ten seconds while this rank's files are read."""

    def __init__(self, name: str, total: int, say: Callable[[str], None]):
        self._name, self._total, self._say = name, total, say
        self._done, self._next_line = 0, time.monotonic() + SECONDS_BETWEEN_LINES

    def file_read(self, bytes_read: int) -> None:
        if time.monotonic() >= self._next_line:
            self._next_line += SECONDS_BETWEEN_LINES
            self._say(f"checking {self._name}: {(self._done + bytes_read) / self._total:.0%}")

    def file_done(self, size: int) -> None:
        self._done += size
