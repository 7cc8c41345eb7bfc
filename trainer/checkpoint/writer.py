"""Saving: every rank writes its own fragments, then rank 0 makes the checkpoint appear at once, whole.

The files go to a hidden directory, are synced to disk, and only then is the directory renamed to its final name. A
crash at any moment leaves the earlier checkpoints as they were.

Where machines have disks of their own (`Storages`), each storage's leader does what rank 0 does on a shared one. No
directory gets its name before all files of all ranks are on disk everywhere, and nothing older goes before it has its
name everywhere. So after a crash in between, the new checkpoint or an earlier one is complete over all storages.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.host_memory import HostMemory, State
from trainer.checkpoint.manifest import (
    LATEST,
    FileRecord,
    Manifest,
    directory_name,
    list_checkpoints,
    step_of,
    write_manifest,
)
from trainer.checkpoint.state_file import write_fp32
from trainer.engine.engine import FreezingEngine
from trainer.engine.frozen import FrozenArchive
from trainer.files import sync_directory, write_text
from trainer.storages import Storages

T = TypeVar("T")


class SaveFailed(RuntimeError):
    """A checkpoint could not be written; the earlier ones are untouched. Raised on every rank."""


class _LostTouch(SaveFailed):
    """How far the other ranks have come is not known."""


def save_checkpoint(
    root: Path,
    manifest: Manifest,
    engine: FreezingEngine,
    archive: FrozenArchive,
    config: CheckpointConfig,
    reference: Mapping[str, torch.Tensor] | None = None,
    storages: Storages | None = None,
) -> tuple[Path, int]:
    """Write ``root/step_…`` while training waits, collective over all ranks; see `write_checkpoint`."""
    state = HostMemory().copy_state(engine, archive, reference)
    return write_checkpoint(root, manifest, state, config, storages=storages)


def write_checkpoint(
    root: Path,
    manifest: Manifest,
    state: State,
    config: CheckpointConfig,
    group: dist.ProcessGroup | None = None,
    storages: Storages | None = None,
) -> tuple[Path, int]:
    """Write ``root/step_…`` from every rank's `state` and delete the checkpoints that `config` does not keep.

    Collective over `group`, which holds all ranks. `manifest` comes without its `files`. `storages`: of `root`; None =
    all ranks see one. Returns the directory and its size in bytes over all storages. Raises `SaveFailed` on all ranks
    when one of them cannot write; what was written of it is removed."""
    storages = storages or Storages.shared()
    rank = dist.get_rank()
    final = root / directory_name(manifest.step)
    temporary = root / f".{final.name}.tmp"
    named: list[Path] = []

    def together(action: Callable[[], T]) -> list[T]:
        return _together(action, final, group, storages)

    def on_leaders(action: Callable[[], None]) -> None:
        together(lambda: action() if storages.leads else None)

    sizes = together(lambda: sum(values.nbytes for values in state.values()))
    needed = sum(sizes[neighbour] for neighbour in storages.ranks_of(storages.leader))
    try:
        on_leaders(lambda: _make_empty(temporary, needed))
        records = together(lambda: _write_rank_file(temporary / _file_name(rank), state, needed))
        files = {_file_name(writer): record for writer, record in enumerate(records)}
        hosts = {_file_name(writer): host for writer, host in enumerate(storages.hosts)} if storages.several else {}
        on_leaders(lambda: _complete(temporary, replace(manifest, files=files, hosts=hosts)))
        on_leaders(lambda: named.append(_give_name(temporary, final)))
    except SaveFailed as failure:
        if storages.leads:
            if named and not isinstance(failure, _LostTouch):  # another storage could not: nobody has it then
                _take_name_back(temporary, final)
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    # The checkpoint is there from here on; housekeeping that fails must not say otherwise, nor end a training.
    with contextlib.suppress(SaveFailed):
        on_leaders(lambda: sync_directory(root))  # everywhere, before anything older goes
        on_leaders(lambda: _keep_house(temporary, final, config))
    return final, sum(record.bytes for record in records)


def _file_name(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


def _together(action: Callable[[], T], final: Path, group: dist.ProcessGroup | None, storages: Storages) -> list[T]:
    """Run `action` on every rank; all results by rank. What one rank raises, all raise: nobody is left waiting."""
    result, error = None, None
    try:
        result = action()
    except Exception as raised:
        error = f"{storages.name(storages.rank)}: {raised}"
    outcomes: list[Any] = [None] * dist.get_world_size()
    try:
        dist.all_gather_object(outcomes, (result, error), group=group)
    except RuntimeError as raised:
        error = error or f"lost touch with the other ranks ({raised})"
        raise _LostTouch(f"{final} not saved, earlier ones are intact: {error}") from None
    errors = [error for _, error in outcomes if error is not None]
    if errors:
        raise SaveFailed(f"{final} not saved, earlier ones are intact: {errors[0]}")
    return [result for result, _ in outcomes]


def _make_empty(directory: Path, needed: int) -> None:
    """The hidden directory to write into. Raises OSError if `needed` bytes will not fit beside what is there."""
    for stale in directory.parent.glob(".step_*.tmp"):  # what a killed run left half-written
        shutil.rmtree(stale, ignore_errors=stale != directory)  # only this name is needed now
    directory.mkdir(parents=True)
    if shutil.disk_usage(directory).free < needed:  # spares the writing; quotas and other writers show only then
        raise OSError(f"{directory}: no room ({_room(directory, needed)})")


def _write_rank_file(path: Path, state: State, needed: int) -> FileRecord:
    shapes = {key: list(values.shape) for key, values in state.items()}
    try:
        with path.open("wb") as stream:
            size, digest = write_fp32(stream, shapes, state.values())
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise OSError(f"{path}: {error.strerror} ({_room(path.parent, needed)})") from None
    return FileRecord(size, digest)


def _room(directory: Path, needed: int) -> str:
    free = shutil.disk_usage(directory).free
    return f"the checkpoint needs {needed:,} bytes, {free:,} are free"


def _complete(temporary: Path, manifest: Manifest) -> None:
    write_manifest(temporary, manifest)
    sync_directory(temporary)


def _give_name(temporary: Path, final: Path) -> Path:
    replaced = _replaced(temporary)
    if final.exists():  # a state for inspection that is saved again, or one of another process that still saves here
        final.rename(replaced)
    try:
        return temporary.rename(final)
    except OSError:
        if replaced.exists():
            replaced.rename(final)
        raise


def _take_name_back(temporary: Path, final: Path) -> None:
    with contextlib.suppress(OSError):
        final.rename(temporary)
        if _replaced(temporary).exists():
            _replaced(temporary).rename(final)


def _replaced(temporary: Path) -> Path:
    return temporary.with_suffix(".replaced.tmp")


def _keep_house(temporary: Path, final: Path, config: CheckpointConfig) -> None:
    root = final.parent
    with contextlib.suppress(OSError):
        write_text(root / LATEST, final.name)
    by_step = {step_of(path): path for path in list_checkpoints(root)}
    for step in config.superseded(list(by_step)):
        shutil.rmtree(by_step[step], ignore_errors=True)
    shutil.rmtree(_replaced(temporary), ignore_errors=True)
