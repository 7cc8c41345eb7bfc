"""Saving fragments to memory and continuing from them: runs on the ranks, states travel as numpy arrays."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tests.engine.cases import FREEZES, STEPS, Setting, engine_for, new_model, train_step, weights
from trainer.engine.engine import FreezingEngine

MASTER = "master"
Arrays = dict[tuple[str, str], np.ndarray]
"""(kind, parameter name) → whole flattened tensor, fp32; kinds are "master" and the moments' names."""


@dataclass
class SavedState:
    """What a checkpoint would hold at a step boundary."""

    step: int
    frozen_units: int
    arrays: Arrays
    engine: str  # JSON


@dataclass
class Outcome:
    """Losses of the steps after the save, and the final weights, of one rank."""

    losses: list[float]
    weights: dict[str, np.ndarray]


def train_and_save(setting: Setting, save_before: int) -> tuple[SavedState, Outcome]:
    """Train all steps; keep a state before step `save_before` and what came after it."""
    model = new_model()
    frozen: Arrays = {}
    with engine_for(model, setting) as engine:
        for step in range(STEPS):
            if step in FREEZES:
                frozen |= _masters_about_to_freeze(engine, FREEZES[step])
                engine.freeze(FREEZES[step])
            if step == save_before:
                arrays = {**gathered_fragments(engine), **frozen}
                saved = SavedState(step, model.frozen_units, arrays, json.dumps(engine.resume_state()))
                losses = []
            if step >= save_before:
                losses += train_step(engine, step)
            else:
                train_step(engine, step)
        return saved, Outcome(losses, _numpy(weights(engine)))


def resume(setting: Setting, saved: SavedState) -> Outcome:
    """Continue from `saved` with a new model that starts from other random weights."""
    model = new_model(seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(saved.arrays[MASTER, name]).view_as(parameter))
    if saved.frozen_units:
        model.freeze_prefix(saved.frozen_units)
    with engine_for(model, setting) as engine:
        engine.load_resume_state(json.loads(saved.engine))
        for fragment in engine.fragments(owned_only=False):
            for kind, values in {MASTER: fragment.master, **fragment.moments}.items():
                whole = torch.from_numpy(saved.arrays[kind, fragment.name])
                values.copy_(whole[fragment.start : fragment.start + fragment.length])
        counts = ("global_steps", "skipped_steps", "optimizer_steps")
        assert [engine.resume_state()[key] for key in counts] == [json.loads(saved.engine)[key] for key in counts]
        losses = []
        for step in range(saved.step, STEPS):
            if step in FREEZES and FREEZES[step] > model.frozen_units:
                engine.freeze(FREEZES[step])
            losses += train_step(engine, step)
        return Outcome(losses, _numpy(weights(engine)))


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


def _masters_about_to_freeze(engine: FreezingEngine, frozen_units: int) -> Arrays:
    arrays = gathered_fragments(engine)
    return {
        (kind, name): array
        for (kind, name), array in arrays.items()
        if kind == MASTER and engine.model.unit_of(name) < frozen_units
    }


def _numpy(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}
