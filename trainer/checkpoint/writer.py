"""Saving: every rank writes its own fragments, then rank 0 makes the checkpoint appear at once, whole.

The files go to a hidden directory, are synced to disk, and only then is the directory renamed to its final name. A
crash at any moment leaves the earlier checkpoints as they were.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from trainer.checkpoint.manifest import LATEST, Manifest, directory_name, list_checkpoints, sha256, write_manifest
from trainer.engine.engine import FreezingEngine
from trainer.engine.frozen import FrozenArchive
from trainer.files import sync_directory, write_text
from trainer.ranks import from_rank_zero

MASTER = "master"  # fp32 weights of the trained and of the frozen parameters alike


class SaveFailed(RuntimeError):
    """A checkpoint could not be written; the earlier ones are untouched. Raised on every rank."""


def tensor_key(kind: str, name: str, start: int) -> str:
    """Key of a fragment in a safetensors file, e.g. ``exp_avg:blocks.3.mlp.fc1.weight:73728``."""
    return f"{kind}:{name}:{start}"


def save_checkpoint(
    root: Path, manifest: Manifest, engine: FreezingEngine, archive: FrozenArchive, keep_last: int
) -> tuple[Path, int]:
    """Write ``root/step_…``, collective over all ranks, and delete all but the newest `keep_last`.

    `manifest` comes without its `files`. Returns the directory and its size in bytes.
    Raises `SaveFailed` on all ranks when one of them cannot write."""
    rank = dist.get_rank()
    final = root / directory_name(manifest.step)
    temporary = root / f".{final.name}.tmp"
    _on_rank_zero(lambda: _make_empty(temporary))
    name = f"rank_{rank:05d}.safetensors"
    record: dict[str, object] = {"name": name}
    try:
        save_file(_tensors(engine, archive), temporary / name)
        _sync_file(temporary / name)
        record |= {"bytes": (temporary / name).stat().st_size, "sha256": sha256(temporary / name)}
    except Exception as error:  # whatever went wrong here, the other ranks have to hear of it or they wait for ever
        record["error"] = f"rank {rank}: {temporary / name}: {error}"
    records: list[dict] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(records, record)
    errors = [r["error"] for r in records if "error" in r]
    if errors:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise SaveFailed(f"checkpoint not saved, earlier ones are intact: {errors[0]}")
    files = {r["name"]: {"bytes": r["bytes"], "sha256": r["sha256"]} for r in records}
    _on_rank_zero(lambda: _publish(temporary, final, replace(manifest, files=files), keep_last))
    return final, sum(r["bytes"] for r in records)


def _tensors(engine: FreezingEngine, archive: FrozenArchive) -> dict[str, torch.Tensor]:
    tensors = {}
    for fragment in engine.fragments(owned_only=True):
        for kind, values in {MASTER: fragment.master, **fragment.moments}.items():
            tensors[tensor_key(kind, fragment.name, fragment.start)] = values.detach().to("cpu", copy=True)
    for name, start, values in archive:
        tensors[tensor_key(MASTER, name, start)] = values
    return tensors


def _publish(temporary: Path, final: Path, manifest: Manifest, keep_last: int) -> None:
    write_manifest(temporary, manifest)
    sync_directory(temporary)
    if final.exists():  # left damaged by a crash, or saved again after resuming from an earlier one
        shutil.rmtree(final)
    temporary.rename(final)
    write_text(final.parent / LATEST, final.name)
    others = [directory for directory in list_checkpoints(final.parent) if directory != final]
    for old in others[keep_last - 1 :]:
        shutil.rmtree(old, ignore_errors=True)  # housekeeping that fails must not end a training


def _make_empty(directory: Path) -> None:
    for stale in directory.parent.glob(".step_*.tmp"):  # what a killed run left half-written
        shutil.rmtree(stale)
    directory.mkdir(parents=True)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _on_rank_zero(action: Callable[[], None]) -> None:
    try:
        from_rank_zero(action)
    except OSError as error:
        raise SaveFailed(f"checkpoint not saved, earlier ones are intact: {error}") from error
