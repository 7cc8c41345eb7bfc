"""What real ranks send in a step, beside the plan's figure for it: runs on the ranks."""

from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from tests.engine import localmim_case
from tests.engine.cases import Setting, engine_for, new_model, train_step
from tests.engine.small_vit import SmallViT, batch
from tests.engine.traffic import Traffic, counted_traffic
from trainer.engine.engine import FreezingEngine
from trainer.model.localmim import LocalMIM
from trainer.planning.parameter_use import ParameterUse, parameter_use, planned_use
from trainer.planning.traffic import step_traffic

Pair = tuple[dict[str, float], dict[str, float]]
"""Counted and planned, by the names of `StepTraffic`."""


def small_vit_steps(setting: Setting, zero: dict[str, Any]) -> list[Pair]:
    """One pair for every frozen count of the small ViT, frozen one unit at a time."""
    found = []
    model = new_model()
    with engine_for(model, setting, **zero) as engine:
        for frozen_units in range(model.num_units):
            if frozen_units:
                engine.freeze(frozen_units)
            for step in range(_steps_before(setting)):
                train_step(engine, step)
            with counted_traffic() as traffic:
                train_step(engine, 2)
            found.append(_pair(traffic, small_vit_use(frozen_units), engine))
    return found


def small_vit_use(frozen_units: int) -> ParameterUse:
    model = SmallViT()
    model.freeze_prefix(frozen_units)
    return parameter_use(model, *batch(0, 0))


def localmim_steps(setting: Setting, zero: dict[str, Any], checkpoint_activations: bool = False) -> list[Pair]:
    """The same for the real model, whose stages drop out with their blocks."""
    config = localmim_case.CONFIG
    found = []
    torch.manual_seed(0)
    model = LocalMIM(config, checkpoint_activations=checkpoint_activations)
    with engine_for(model, setting, **zero) as engine:
        for frozen_units in range(model.num_units):
            if frozen_units:
                engine.freeze(frozen_units)
            for step in range(_steps_before(setting)):
                _localmim_step(engine, step)
            with counted_traffic() as traffic:
                _localmim_step(engine, 2)
            use = planned_use(config, frozen_units, checkpoint_activations=checkpoint_activations)
            found.append(_pair(traffic, use, engine))
    return found


def _localmim_step(engine: FreezingEngine, step: int) -> None:
    engine.set_learning_rates([1e-3] * engine.model.num_units)
    for micro_step in range(engine.resolved.accumulation):
        loss, _ = engine.forward(*localmim_case.batch(step, 2 * micro_step + dist.get_rank()))
        engine.backward(loss)
        engine.step()


def _steps_before(setting: Setting) -> int:
    """ZeRO-3 records the order of the modules in the first forward and backward, and prefetches from the next on."""
    return 2 if setting.stage == 3 else 0


def _pair(traffic: Traffic, use: ParameterUse, engine: FreezingEngine) -> Pair:
    counted = {
        "reduced_elements": sum(call.elements for call in traffic.reductions),
        "gathered_elements": sum(call.elements for call in traffic.gathers),
        "reduced_bytes": sum(call.bytes for call in traffic.reductions),
        "gathered_bytes": sum(call.bytes for call in traffic.gathers),
        "sent_bytes": traffic.sent_bytes,
    }
    return counted, asdict(step_traffic(use, engine.resolved, dist.get_world_size()))
