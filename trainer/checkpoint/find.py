"""Finding the checkpoint to go on from: the newest whole one, checked by all ranks together.

`latest` is for people and is not read here: a checkpoint's directory and manifest say all there is to know, and a
pointer can only be stale.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from trainer.checkpoint.manifest import (
    MANIFEST,
    DamagedCheckpoint,
    Manifest,
    ScatteredCheckpoint,
    files_missing,
    list_checkpoints,
    not_here,
    read_manifest,
    verify_file,
)
from trainer.checkpoint.progress import Progress
from trainer.errors import BadInput
from trainer.storages import Storages

OnEach = Callable[[Callable[[], Any]], dict[int, Any]]


def _here_alone(action: Callable[[], Any]) -> dict[int, Any]:
    """`Storages.on_each` for one process without a process group."""
    return {0: action()}


def checkpoint_candidates(root: Path, resume: str, on_each: OnEach = _here_alone) -> list[Path]:
    """The checkpoints, newest first, that `--resume auto|never|PATH` allows to go on from; `root` is the run's own.

    PATH is a checkpoint or a run directory, whose newest one is meant and no other. `on_each`: of the run's `Storages`,
    any of which may hold what others do not. Raises `BadInput` where `never` would overwrite checkpoints, where PATH
    holds none, and where a folder cannot be read."""
    given = None if resume in ("auto", "never") else Path(resume)
    base = given or root

    def list_here() -> list[str]:
        found = _checkpoints_in(given, "--resume") if given else _checkpoints_of_run(root, resume)
        return [str(path.relative_to(base)) for path in found]

    names = {name for found in on_each(list_here).values() for name in found}
    newest_first = [base / name for name in sorted(names, key=lambda name: (len(name), name), reverse=True)]
    if given is None:
        return newest_first
    if not newest_first:
        raise _nothing_at(given, "--resume")
    return newest_first[:1]


def _checkpoints_of_run(root: Path, resume: str) -> list[Path]:
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
    if found := _checkpoints_in(path, option):
        return found
    raise _nothing_at(path, option)


def _checkpoints_in(path: Path, option: str) -> list[Path]:
    try:
        return [path] if (path / MANIFEST).is_file() else list_checkpoints(path / "checkpoints")
    except OSError as error:
        raise BadInput(f"{option} {path}: cannot be read ({error.strerror}); mend that, or give another") from None


def _nothing_at(path: Path, option: str) -> BadInput:
    return BadInput(f"{option} {path}: no checkpoint there (give a run directory or a step_… directory)")


def first_whole(
    candidates: list[Path], resume: str, say: Callable[[str], None], verify_one: Callable[[Path], object]
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


def newest_whole(candidates: list[Path], say: Callable[[str], None], verify_one: Callable[[Path], object]) -> Path:
    """The first candidate that `verify_one` does not refuse; the others are named through `say` and passed over.

    Raises `DamagedCheckpoint` if none is whole; the newest one's `ScatteredCheckpoint` if nothing worse is with any."""
    refusals = []
    for directory in candidates:
        try:
            verify_one(directory)
            return directory
        except DamagedCheckpoint as error:
            say(f"passing over {error.kind}: {error}")
            refusals.append(error)
    if all(isinstance(error, ScatteredCheckpoint) for error in refusals):
        raise refusals[0]
    raise DamagedCheckpoint(f"{candidates[0].parent}: none of its {len(candidates)} checkpoints is whole")


@dataclass(frozen=True)
class WholeCheckpoint:
    """A checkpoint of which each file is whole on one storage at least.

    `held`: for each storage that has its manifest, by the storage's leader, the files that are whole there."""

    manifest: Manifest
    held: dict[int, frozenset[str]]


@dataclass(frozen=True)
class _Copy:
    """What one storage has of a checkpoint; without a manifest, what is wrong with it."""

    manifest: Manifest | None
    files: frozenset[str] = frozenset()
    damage: str = ""
    absent: bool = False


def verify_together(directory: Path, say: Callable[[str], None], storages: Storages | None = None) -> WholeCheckpoint:
    """`manifest.verify` of what all storages have of a checkpoint; each one's files are divided over the ranks that see
    them. None: all ranks see one storage. Collective; every rank returns or raises the same.

    `say` is told now and then how far rank 0 has come, which is about as far as all, and of damage that does not count
    because another storage has the same file whole."""
    storages = storages or Storages.shared()
    copies = storages.on_each(lambda: _look_at(directory))
    manifest = _most_complete(directory, list(copies.values()), storages)
    held = {leader: copy.files for leader, copy in copies.items() if copy.manifest == manifest}
    neighbours = storages.ranks_of(storages.leader)
    mine = sorted(held.get(storages.leader, ()))[neighbours.index(storages.rank) :: len(neighbours)]
    progress = Progress(f"checking {directory.name}", sum(manifest.files[name].bytes for name in mine), say)
    damage = {}
    for name in mine:
        try:
            verify_file(directory, name, manifest.files[name], progress.at)
        except DamagedCheckpoint as error:
            damage[name] = f"{storages.name(storages.rank)}: {error}" if storages.several else str(error)
        progress.done(manifest.files[name].bytes)
    found: list[dict[str, str]] = [{}] * len(storages.leaders)
    dist.all_gather_object(found, damage)
    damaged = {(storages.leaders[rank], name): text for rank, by in enumerate(found) for name, text in by.items()}
    held = {leader: frozenset(n for n in files if (leader, n) not in damaged) for leader, files in held.items()}
    for (_, name), text in damaged.items():
        if not any(name in files for files in held.values()):
            raise DamagedCheckpoint(text)
    spoilt = {leader: copy.damage for leader, copy in copies.items() if copy.manifest is None and not copy.absent}
    for text in [*(f"{storages.name(leader)}: {text}" for leader, text in spoilt.items()), *damaged.values()]:
        say(f"a copy is damaged, another storage has it whole: {text}")
    return WholeCheckpoint(manifest, held)


def _look_at(directory: Path) -> _Copy:
    try:
        manifest = read_manifest(directory)
    except DamagedCheckpoint as error:
        return _Copy(None, damage=str(error), absent=not os.path.lexists(directory))
    return _Copy(manifest, frozenset(manifest.files) - frozenset(files_missing(directory, manifest)))


def _most_complete(directory: Path, copies: list[_Copy], storages: Storages) -> Manifest:
    """The manifest whose files are all there on the storages that have it. (They have different ones where one of them
    was left out when a step was taken again.) Raises `DamagedCheckpoint`."""
    incomplete: list[tuple[Manifest, list[str]]] = []
    for manifest in (copy.manifest for copy in copies if copy.manifest is not None):
        missing = set(manifest.files).difference(*(copy.files for copy in copies if copy.manifest == manifest))
        if not missing:
            return manifest
        incomplete.append((manifest, sorted(missing)))
    if not incomplete:
        raise DamagedCheckpoint(min((copy.absent, copy.damage) for copy in copies)[1])
    first, names = incomplete[0]
    for name in names:
        if first.hosts.get(name) not in storages.hosts:
            raise not_here(directory, first, names)
    raise DamagedCheckpoint(
        f"{directory}: {names[0]} is not on {first.hosts[names[0]]} either: the run ended while it saved that step, or "
        "the file was deleted"
    )
