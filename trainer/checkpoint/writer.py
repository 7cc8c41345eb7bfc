"""Saving: every rank writes its own fragments, then rank 0 makes the checkpoint appear at once, whole.

The files go to a hidden directory, are synced to disk, and only then is the directory renamed to its final name. A
crash at any moment leaves the earlier checkpoints as they were.
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

T = TypeVar("T")


class SaveFailed(RuntimeError):
    """A checkpoint could not be written; the earlier ones are untouched. Raised on every rank."""


def save_checkpoint(
    root: Path,
    manifest: Manifest,
    engine: FreezingEngine,
    archive: FrozenArchive,
    config: CheckpointConfig,
    reference: Mapping[str, torch.Tensor] | None = None,
) -> tuple[Path, int]:
    """Write ``root/step_…`` while training waits, collective over all ranks; see `write_checkpoint`."""
    state = HostMemory().copy_state(engine, archive, reference)
    return write_checkpoint(root, manifest, state, config)


def write_checkpoint(
    root: Path, manifest: Manifest, state: State, config: CheckpointConfig, group: dist.ProcessGroup | None = None
) -> tuple[Path, int]:
    """Write ``root/step_…`` from every rank's `state` and delete the checkpoints that `config` does not keep.

    Collective over `group`, which holds all ranks. `manifest` comes without its `files`. Returns the directory and its
    size in bytes. Raises `SaveFailed` on all ranks when one of them cannot write; what was written of it is removed."""
    rank = dist.get_rank()
    final = root / directory_name(manifest.step)
    temporary = root / f".{final.name}.tmp"

    def together(action: Callable[[], T]) -> list[T]:
        return _together(action, final, group)

    def on_rank_zero(action: Callable[[], None]) -> None:
        _together(lambda: action() if rank == 0 else None, final, group)

    needed = sum(together(lambda: sum(values.nbytes for values in state.values())))
    try:
        on_rank_zero(lambda: _make_empty(temporary, needed))
        records = together(lambda: _write_rank_file(temporary / _file_name(rank), state, needed))
        files = {_file_name(writer): record for writer, record in enumerate(records)}
        on_rank_zero(lambda: _publish(temporary, final, replace(manifest, files=files), config))
    except SaveFailed:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final, sum(record.bytes for record in records)


def _file_name(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


def _together(action: Callable[[], T], final: Path, group: dist.ProcessGroup | None) -> list[T]:
    """Run `action` on every rank; all results by rank. What one rank raises, all raise: nobody is left waiting."""
    result, error = None, None
    try:
        result = action()
    except Exception as raised:
        error = f"rank {dist.get_rank()}: {raised}"
    outcomes: list[Any] = [None] * dist.get_world_size()
    try:
        dist.all_gather_object(outcomes, (result, error), group=group)
    except RuntimeError as raised:
        error = error or f"lost touch with the other ranks ({raised})"
        raise SaveFailed(f"{final} not saved, earlier ones are intact: {error}") from None
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


def _publish(temporary: Path, final: Path, manifest: Manifest, config: CheckpointConfig) -> None:
    root = final.parent
    write_manifest(temporary, manifest)
    sync_directory(temporary)
    replaced = temporary.with_suffix(".replaced.tmp")
    if final.exists():  # a state for inspection that is saved again, or one of another process that still saves here
        final.rename(replaced)
    temporary.rename(final)
    # The checkpoint is there from here on; housekeeping that fails must not say otherwise, nor end a training.
    with contextlib.suppress(OSError):
        sync_directory(root)  # before anything older goes
        with contextlib.suppress(OSError):
            write_text(root / LATEST, final.name)
        by_step = {step_of(path): path for path in list_checkpoints(root)}
        for step in config.superseded(list(by_step)):
            shutil.rmtree(by_step[step], ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
