"""What the tests of background saves run on the ranks."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch.distributed as dist

from tests.checkpoint.tensors import Counting, manifest
from tests.engine.cases import Setting, engine_for, new_model, train_step
from tests.engine.resumption import save
from trainer.checkpoint import manifest as manifest_module
from trainer.checkpoint import writer as writer_module
from trainer.checkpoint.background import BackgroundSaves
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.find import verify_together
from trainer.checkpoint.manifest import DamagedCheckpoint, Manifest, list_checkpoints
from trainer.checkpoint.state_file import sha256
from trainer.engine.frozen import FrozenArchive

PLENTY = namedtuple("usage", "total used free")(2**40, 0, 2**40)


def save_counts(root: str, steps: list[int], numel: int, config: CheckpointConfig) -> list[str]:
    """Save a `Counting` state at each of `steps` while it counts on; the names left in `root`."""
    state, saves = Counting(numel), BackgroundSaves(Path(root), config, lambda reason: None)
    for step in steps:
        state.count(step)
        saves.save(manifest(step, state.shapes, world_size=dist.get_world_size()), state, state.archive)
        state.count(-1)  # training goes on at once
    saves.wait()
    reports = saves.reports()
    assert [(report.step, report.error) for report in reports] == [(step, None) for step in steps]
    assert all(0 <= report.stall_seconds <= report.seconds and report.bytes > 0 for report in reports)
    return sorted(path.name for path in Path(root).iterdir())


def save_twice_and_train_on(setting: Setting, root: str) -> int:
    """Save a real engine's state while training waits, then in the background, and train on meanwhile."""
    archive = FrozenArchive()
    model = new_model()
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    with engine_for(model, setting) as engine:
        train_step(engine, 0)
        archive.keep(engine, {name for name in shapes if model.unit_of(name) == 0})
        engine.freeze(1)
        train_step(engine, 1)
        save(engine, archive, setting, 2, shapes, f"{root}/waiting")
        saves = BackgroundSaves(Path(root) / "background", CheckpointConfig(), lambda reason: None)
        about = Manifest(2, 1, dist.get_world_size(), setting.stage, setting.precision, {}, "", engine.resume_state(),
                         shapes, {})  # fmt: skip
        saves.save(about, engine, archive)
        for step in range(2, 5):
            train_step(engine, step)
        saves.wait()
        return len(saves.reports())


def save_while_housekeeping_fails(root: str, what: str) -> tuple[str | None, bool, list[str]]:
    """Save a second checkpoint while `what` the writer does after its rename raises; the error, and what is left."""
    state, saves = Counting(100), BackgroundSaves(Path(root), CheckpointConfig(keep_last=1), lambda reason: None)
    real = getattr(writer_module, what)

    def failing(path: Path, *rest: Any) -> Any:
        if (path.parent if what == "write_text" else path) == Path(root):
            raise OSError("the mount is slow today")
        return real(path, *rest)

    for step in (1, 2):
        state.count(step)
        with mock.patch.object(writer_module, what, failing if step == 2 else real):
            saves.save(manifest(step, state.shapes, world_size=dist.get_world_size()), state, state.archive)
            saves.wait()
    return saves.reports()[1].error, saves.failed, sorted(path.name for path in Path(root).glob("step_*"))


@dataclass
class Outcome:
    """What this rank saw of three saves, of which the second met a full disk."""

    errors: list[str | None]
    asked_to_stop: list[str] = field(default_factory=list)
    failed: list[bool] = field(default_factory=list)
    on_disk: list[list[str]] = field(default_factory=list)


def save_on_a_disk_that_fills_up(disk: str, on_error: str, notice_beforehand: bool) -> Outcome:
    """Saves at steps 1, 2, 3 of about 3 MB each; the disk is filled before the second and emptied after it."""
    root, filler = Path(disk) / "checkpoints", Path(disk) / "filler"
    outcome = Outcome([])
    state = Counting(numel=250_000)
    saves = BackgroundSaves(root, CheckpointConfig(on_error=on_error), outcome.asked_to_stop.append)
    free = shutil.disk_usage if notice_beforehand else lambda path: PLENTY  # a quota, or others write at the same time
    for step in (1, 2, 3):
        if dist.get_rank() == 0 and step == 2:
            filler.write_bytes(bytes(shutil.disk_usage(disk).free - 2 * 2**20))
        if dist.get_rank() == 0 and step == 3:
            filler.unlink()
        dist.barrier()
        state.count(step)
        with mock.patch("shutil.disk_usage", free):
            saves.save(manifest(step, state.shapes, world_size=dist.get_world_size()), state, state.archive)
            saves.wait()
        dist.barrier()  # rank 0 clears away what was written
        outcome.errors += [report.error for report in saves.reports()]
        outcome.failed.append(saves.failed)
        outcome.on_disk.append(sorted(path.name for path in root.iterdir()))
        dist.barrier()
    return outcome


def verify_and_count(root: str) -> tuple[str, list[str]]:
    """Verify the newest checkpoint together with the other ranks: the outcome, and the files that this rank read."""
    read: list[str] = []

    def counting(path: Path, progress: Callable[[int], None]) -> str:
        read.append(path.name)
        return sha256(path, progress)

    with mock.patch.object(manifest_module, "sha256", counting):
        try:
            verify_together(list_checkpoints(Path(root))[0], print)
            return "whole", read
        except DamagedCheckpoint as error:
            return str(error), read
