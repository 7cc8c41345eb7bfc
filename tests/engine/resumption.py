"""Saving a checkpoint on disk and continuing from it, through `trainer.checkpoint`: runs on the ranks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tests.engine.cases import FREEZES, STEPS, Setting, engine_for, new_model, train_step, weights
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.manifest import Manifest, list_checkpoints
from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.state_file import MASTER
from trainer.checkpoint.writer import SaveFailed, save_checkpoint
from trainer.engine.engine import FreezingEngine
from trainer.engine.frozen import FrozenArchive

Arrays = dict[tuple[str, str], np.ndarray]
"""(kind, parameter name) → whole flattened tensor, fp32; kinds are "master" and the moments' names."""


@dataclass
class Outcome:
    """Losses of the steps after the save, the final weights, and the fp32 masters of units as they froze."""

    losses: list[float]
    weights: dict[str, np.ndarray]
    masters_at_freeze: Arrays


def train_and_save(setting: Setting, save_before: int, root: str) -> Outcome:
    """Train all steps; save before step `save_before` and what freezes there, and report what came after it."""
    model, archive = new_model(), FrozenArchive()
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    masters: Arrays = {}
    losses: list[float] = []
    with engine_for(model, setting) as engine:
        for step in range(STEPS):
            if step == save_before:
                save(engine, archive, setting, step, shapes, root)
                masters_at_save = dict(masters)
            if step in FREEZES:
                _freeze(engine, archive, FREEZES[step], masters)
            done = train_step(engine, step)
            losses += done if step >= save_before else []
        return Outcome(losses, _numpy(weights(engine)), masters_at_save)


def resume(setting: Setting, root: str) -> Outcome:
    """Continue from the newest checkpoint with a new model that starts from other random weights."""
    checkpoint = Checkpoint(list_checkpoints(Path(root))[0])
    model, archive = new_model(seed=1), FrozenArchive()
    checkpoint.load_weights(model)
    if checkpoint.manifest.frozen_units:
        model.freeze_prefix(checkpoint.manifest.frozen_units)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    checkpoint.load_archive(archive, frozen, dist.get_rank(), dist.get_world_size())
    losses = []
    with engine_for(model, setting) as engine:
        checkpoint.load_engine(engine)
        counts = ("global_steps", "skipped_steps", "optimizer_steps")
        assert [engine.resume_state()[key] for key in counts] == [checkpoint.manifest.engine[key] for key in counts]
        for step in range(checkpoint.manifest.step, STEPS):
            if step in FREEZES and FREEZES[step] > model.frozen_units:
                _freeze(engine, archive, FREEZES[step], {})
            losses += train_step(engine, step)
        save(engine, archive, setting, STEPS, checkpoint.manifest.shapes, root + "_again")
        return Outcome(losses, _numpy(weights(engine)), {})


def save(engine: FreezingEngine, archive: FrozenArchive, setting: Setting, step: int, shapes: dict, root: str) -> None:
    manifest = Manifest(
        step=step,
        frozen_units=engine.model.frozen_units,
        world_size=dist.get_world_size(),
        zero_stage=setting.stage,
        precision=setting.precision,
        recipe={},
        index_hash="",
        engine=engine.resume_state(),
        shapes=shapes,
        files={},
    )
    save_checkpoint(Path(root), manifest, engine, archive, CheckpointConfig())


def save_that_one_rank_cannot_write(root: str) -> tuple[str, list[str]]:
    """The error that this rank gets when rank 1's file cannot be written, and the checkpoints left on disk."""
    setting = Setting(1, "fp32")
    shapes = {name: list(parameter.shape) for name, parameter in new_model().named_parameters()}
    with engine_for(new_model(), setting) as engine:
        train_step(engine, 0)
        save(engine, FrozenArchive(), setting, 1, shapes, root)
        train_step(engine, 1)
        archive = FrozenArchive()
        if dist.get_rank() == 1:
            archive.parts["unwritable"] = (0, torch.zeros(2).to_sparse())  # safetensors refuses it
        try:
            save(engine, archive, setting, 2, shapes, root)
            message = "saved"
        except SaveFailed as error:
            message = str(error)
        dist.barrier()
        return message, sorted(path.name for path in Path(root).iterdir())


def gathered_fragments(engine: FreezingEngine) -> Arrays:
    """Put the ranks' own fragments together; fails unless they cover every element exactly once."""
    mine = [
        (kind, fragment.name, fragment.start, values.numpy().copy())
        for fragment in engine.fragments(owned_only=True)
        for kind, values in {MASTER: fragment.master, **fragment.moments}.items()
    ]
    by_rank: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(by_rank, mine)
    pieces: dict[tuple[str, str], list[tuple[int, np.ndarray]]] = {}
    for kind, name, start, values in (piece for rank_pieces in by_rank for piece in rank_pieces):
        pieces.setdefault((kind, name), []).append((start, values))
    whole = {}
    for key, parts in pieces.items():
        parts.sort(key=lambda part: part[0])
        starts = np.cumsum([0, *(len(values) for _, values in parts)])
        assert [start for start, _ in parts] == starts[:-1].tolist(), key
        whole[key] = np.concatenate([values for _, values in parts])
    return whole


def coverage(setting: Setting) -> dict[str, tuple[int, int]]:
    """Per trainable parameter: elements in the fragments of all ranks, and its size, after a step and a freeze."""
    with engine_for(new_model(), setting) as engine:
        train_step(engine, 0)
        engine.freeze(2)
        arrays = gathered_fragments(engine)
        sizes = {name: p.numel() for name, p in new_model().named_parameters() if engine.model.unit_of(name) >= 2}
        kinds = {kind for kind, _ in arrays}
        assert kinds == {MASTER, "exp_avg", "exp_avg_sq"}
        return {name: (len(arrays.get((MASTER, name), ())), size) for name, size in sizes.items()}


def _freeze(engine: FreezingEngine, archive: FrozenArchive, frozen_units: int, masters: Arrays) -> None:
    """Freeze as the controller does, and note the masters that are about to go."""
    about_to_go = {
        (kind, name): array
        for (kind, name), array in gathered_fragments(engine).items()
        if kind == MASTER and engine.model.unit_of(name) < frozen_units
    }
    masters |= about_to_go
    archive.keep(engine, {name for _, name in about_to_go})
    engine.freeze(frozen_units)


def _numpy(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}
