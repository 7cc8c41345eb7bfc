"""What the tests of machines with disks of their own run on the ranks. A "machine" is a folder: each rank is given the
path that it sees under the name of the run's output."""

import shutil
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch.distributed as dist

from tests.checkpoint.tensors import Counting, manifest, require_counted
from tests.engine.cases import Setting, engine_for, new_model, train_step
from tests.engine.resumption import Arrays, gathered_fragments
from trainer.checkpoint import gather as gather_module
from trainer.checkpoint import writer as writer_module
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.find import checkpoint_candidates, first_whole, verify_together
from trainer.checkpoint.gather import gather
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.state_file import MASTER
from trainer.checkpoint.writer import SaveFailed, save_checkpoint
from trainer.engine.frozen import FrozenArchive
from trainer.errors import BadInput
from trainer.setup import holding_output
from trainer.storages import Storages, finding_storages

PLENTY = namedtuple("usage", "total used free")(2**40, 0, 2**40)
FIRST, SECOND = "rank_00000.safetensors", "rank_00001.safetensors"
STEP_5 = "step_00000005"
SMALL_PIECES = 1000
"""Bytes: several pieces for each file of these tests."""


def disks(tmp_path: Path, names: str) -> list[str]:
    """The folder of checkpoints that each rank sees: 'abb' are two machines, of which the second has two ranks."""
    return [str(tmp_path / name / "run" / "checkpoints") for name in names]


def on(tmp_path: Path, machine: str) -> Path:
    return tmp_path / machine / "run" / "checkpoints"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextmanager
def on_own_host(folder: Path) -> Iterator[None]:
    """…/b/run/checkpoints is on node-b."""
    machine = next(part for part in reversed(folder.parts) if part not in ("run", "checkpoints"))
    with mock.patch("socket.gethostname", return_value=f"node-{machine}"):
        yield


def leaders(folders: list[str]) -> tuple[int, ...] | str:
    """The storages of a folder for each rank, or how finding them ended."""
    folder = Path(folders[dist.get_rank()])
    try:
        with on_own_host(folder), finding_storages(folder) as storages:
            return storages.leaders
    except BadInput as error:
        return str(error)


def hold(outputs: list[str]) -> list[str] | str:
    """Hold the output of each rank for a moment: the locks there meanwhile, or how that ended."""
    output = Path(outputs[dist.get_rank()])
    try:
        with on_own_host(output), holding_output(output):
            dist.barrier()
            found = sorted(path.name for path in output.iterdir())
            dist.barrier()  # each leader takes its lock away as it leaves
            return found
    except BadInput as error:
        return str(error)


def hold_until_another_has_tried(outputs: list[str], mine: str, other: str) -> str:
    """One of two runs. `mine`, `other`: files that tell that the one and the other have been in or been refused."""
    try:
        with holding_output(Path(outputs[dist.get_rank()])):
            Path(mine).touch()
            while not Path(other).exists():
                time.sleep(0.01)
            return "in"
    except BadInput as error:
        return str(error)
    finally:
        Path(mine).touch()


def save_counts(
    roots: list[str], steps: list[int], numel: int = 3001, config: CheckpointConfig | None = None
) -> list[str]:
    """A `Counting` state saved at each of `steps`; what is in this rank's root."""
    root, state = Path(roots[dist.get_rank()]), Counting(numel)
    with on_own_host(root), finding_storages(root) as storages:
        for step in steps:
            state.count(step)
            _save(root, state, step, storages, config)
    return sorted(path.name for path in root.iterdir())


def _save(root: Path, state: Counting, step: int, storages: Storages, config: CheckpointConfig | None = None) -> None:
    about = manifest(step, state.shapes, world_size=dist.get_world_size())
    save_checkpoint(root, about, state, state.archive, config or CheckpointConfig(keep_last=9), storages=storages)


@dataclass
class Resumed:
    """How a resume ended on this rank: the step that it found, or the refusal; and what was said."""

    step: int | None
    said: list[str] = field(default_factory=list)
    refusal: str = ""


def resume(roots: list[str], check: bool = True, room: int | None = None, plenty: bool = False) -> Resumed:
    """Find the newest checkpoint over all ranks' roots, gather it, and look at every element of it on every rank.

    `room`: bytes that are free on rank 1's disk, if not what is. `plenty`: all is free, as a quota has it."""
    root, said = Path(roots[dist.get_rank()]), list[str]()
    with ExitStack() as stack:
        stack.enter_context(on_own_host(root))
        stack.enter_context(mock.patch.object(gather_module, "PIECE_BYTES", SMALL_PIECES))
        if plenty or (room is not None and dist.get_rank() == 1):
            free = PLENTY if plenty else PLENTY._replace(free=room)
            stack.enter_context(mock.patch("shutil.disk_usage", return_value=free))
        storages = stack.enter_context(finding_storages(root))
        try:
            path = find_and_gather(root, storages, said.append)
        except BadInput as error:
            return Resumed(None, said, str(error))
        if path is None:
            return Resumed(None, said)
        if check:
            require_counted(path)
        return Resumed(Checkpoint(path).manifest.step, said)


def find_and_gather(root: Path, storages: Storages, say: Callable[[str], None]) -> Path | None:
    """As `trainer.setup.choose_checkpoint` does, without a plan to compare with."""
    whole: list[Any] = []
    path = first_whole(
        checkpoint_candidates(root, "auto", storages.on_each),
        "auto",
        say,
        lambda directory: whole.append(verify_together(directory, say, storages)),
    )
    if path is not None:
        gather(path, whole[-1], storages, say)
    return path


def gather_what_changes_meanwhile(roots: list[str]) -> str:
    """The refusal where rank 1's file is no longer what it was when it was checked."""
    root = Path(roots[dist.get_rank()])
    with on_own_host(root), finding_storages(root) as storages:
        (directory,) = checkpoint_candidates(root, "auto", storages.on_each)
        whole = verify_together(directory, print, storages)
        if storages.rank == 1:
            (directory / "rank_00001.safetensors").write_bytes(b"short")
        try:
            gather(directory, whole, storages, print)
        except BadInput as error:
            return str(error)
    return "gathered"


def save_while(
    roots: list[str], what: str, victim: int, step: int, config: CheckpointConfig | None = None
) -> tuple[str, list[str]]:
    """A save during which `what` the writer does fails on rank `victim`: the error, and what is left in the root. Of
    the folders that are synced, that of all checkpoints fails."""
    root, state, real = Path(roots[dist.get_rank()]), Counting(3001), getattr(writer_module, what)

    def failing(*arguments: Any) -> Any:
        if dist.get_rank() != victim or (what == "sync_directory" and arguments[0] != root):
            return real(*arguments)
        raise OSError(f"the disk fails in {what}")

    with on_own_host(root), finding_storages(root) as storages:
        state.count(step)
        with mock.patch.object(writer_module, what, failing):
            try:
                _save(root, state, step, storages, config)
                error = "saved"
            except SaveFailed as failure:
                error = str(failure)
        dist.barrier()
    return error, sorted(path.name for path in root.iterdir())


def save_on_a_disk_that_is_full(roots: list[str], notice_beforehand: bool) -> tuple[list[str], list[list[str]]]:
    """Saves at steps 1, 2, 3 of 3 MB over all ranks; rank 1's disk is full for the second. Errors, and what is left."""
    root, state = Path(roots[dist.get_rank()]), Counting(250_000)
    filler = root.with_name("filler")
    errors, left = [], []
    with on_own_host(root), finding_storages(root) as storages:
        for step in (1, 2, 3):
            if storages.rank == 1 and step == 2:
                filler.write_bytes(bytes(shutil.disk_usage(root).free - 2**20))
            if storages.rank == 1 and step == 3:
                filler.unlink()
            dist.barrier()
            state.count(step)
            try:
                with nullcontext() if notice_beforehand else mock.patch("shutil.disk_usage", return_value=PLENTY):
                    _save(root, state, step, storages)
                errors.append("")
            except SaveFailed as failure:
                errors.append(str(failure))
            dist.barrier()
            left.append(sorted(path.name for path in root.iterdir()))
    return errors, left


def train_and_save(setting: Setting, roots: list[str]) -> Arrays:
    """A real engine after two steps with a unit frozen, saved: masters, moments and frozen weights, whole."""
    root, model, archive = Path(roots[dist.get_rank()]), new_model(), FrozenArchive()
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    with engine_for(model, setting) as engine, finding_storages(root) as storages:
        train_step(engine, 0)
        frozen = {name for name in shapes if model.unit_of(name) == 0}
        masters = {key: values for key, values in gathered_fragments(engine).items() if key[0] == MASTER}
        archive.keep(engine, frozen)
        engine.freeze(1)
        train_step(engine, 1)
        about = Manifest(2, 1, dist.get_world_size(), setting.stage, setting.precision, {}, "", engine.resume_state(),
                         shapes, {})  # fmt: skip
        save_checkpoint(root, about, engine, archive, CheckpointConfig(), storages=storages)
        return {key: values for key, values in masters.items() if key[1] in frozen} | gathered_fragments(engine)


def resume_engine(setting: Setting, roots: list[str]) -> Arrays:
    """The same of a new engine that goes on from what was saved."""
    root, model = Path(roots[dist.get_rank()]), new_model(seed=1)
    with finding_storages(root) as storages:
        path = find_and_gather(root, storages, print)
        assert path is not None
        checkpoint = Checkpoint(path)
        checkpoint.load_weights(model)
        model.freeze_prefix(checkpoint.manifest.frozen_units)
        frozen: dict[tuple[str, str], np.ndarray] = {
            (MASTER, name): parameter.detach().flatten().numpy().copy()
            for name, parameter in model.named_parameters()
            if not parameter.requires_grad
        }
        with engine_for(model, setting) as engine:
            checkpoint.load_engine(engine)
            return frozen | gathered_fragments(engine)
