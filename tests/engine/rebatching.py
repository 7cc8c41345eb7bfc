"""Training whose micro-batch grows at freezes, as the training loop does it: runs on the ranks.

Of a global batch of 48, four samples a micro-batch before the first freeze, then 8, and 12 after the third. On two
ranks that is an accumulation of 6, 3 and 2: no boundary of the last falls on one of the others by chance."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from tests.engine.cases import Setting, close, message_of, micro_batch, new_model, resolved_config, weights
from tests.engine.resumption import save
from trainer.checkpoint.manifest import list_checkpoints
from trainer.checkpoint.reader import Checkpoint
from trainer.data.micro_batches import MicroBatches
from trainer.engine.config import OptimizerConfig
from trainer.engine.engine import FreezingEngine
from trainer.engine.frozen import FrozenArchive
from trainer.freezing.config import FreezingConfig
from trainer.freezing.controller import FreezeController
from trainer.freezing.schedule import FreezeSchedule

STEPS, GLOBAL_BATCH = 8, 48
FREEZING = FreezingConfig(how="linear", t0=0.1, scale_lr=False)
SCHEDULE = FreezeSchedule(FREEZING, depth=4, total_steps=STEPS, warmup_steps=1, lr=1e-3, min_lr=0.0)
FIRST, _, SECOND = (step for step in SCHEDULE.freeze_steps()[:3] if step is not None)
CONSTANT = MicroBatches.always(4)
GROWING = MicroBatches(((0, 4), (FIRST, 8), (SECOND, 12)))


@dataclass
class Outcome:
    """Loss of each step from the first that was trained, as the mean over this rank's samples, and final weights."""

    losses: list[float]
    weights: dict[str, np.ndarray]
    micro_batches: list[int]
    """Samples of this rank's forward passes, one after the other."""
    global_samples: int
    """What DeepSpeed counted."""


def setting(stage: int, precision: str, **options: Any) -> Setting:
    """The layout before the first freeze on as many ranks as there are."""
    return Setting(stage, precision, accumulation=GLOBAL_BATCH // (4 * dist.get_world_size()), **options)


def train(stage: int, precision: str, sizes: MicroBatches, root: str = "", save_before: int = -1) -> Outcome:
    """All steps, saved below `root` before step `save_before`."""
    model, archive = new_model(), FrozenArchive()
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    engine = new_engine(model, setting(stage, precision), sizes.at(0))

    def before(step: int) -> None:
        if step == save_before:
            save(engine, archive, setting(stage, precision), step, shapes, root)

    return _steps(engine, FreezeController(SCHEDULE, sizes, engine, archive), 0, before)


def resume(stage: int, precision: str, sizes: MicroBatches, root: str) -> Outcome:
    """Go on from the newest checkpoint below `root`, with the micro-batch that `sizes` gives to its step."""
    checkpoint = Checkpoint(list_checkpoints(Path(root))[0])
    model, archive, start = new_model(seed=1), FrozenArchive(), checkpoint.manifest.step
    checkpoint.load_weights(model)
    if checkpoint.manifest.frozen_units:
        model.freeze_prefix(checkpoint.manifest.frozen_units)
    engine = new_engine(model, setting(stage, precision), sizes.at(start))
    checkpoint.load_engine(engine)
    return _steps(engine, FreezeController(SCHEDULE, sizes, engine, archive), start, lambda step: None)


def new_engine(model: Any, of: Setting, size: int) -> FreezingEngine:
    return FreezingEngine(model, resolved_config(of).with_micro_batch(size), OptimizerConfig())


def _steps(engine: FreezingEngine, controller: FreezeController, start: int, before: Any) -> Outcome:
    found = Outcome([], {}, [], 0)
    for step in range(start, STEPS):
        before(step)
        if controller.is_due(step):
            controller.freeze(step)
        controller.set_rates(step)
        losses = []
        for number in range(engine.resolved.accumulation):
            inputs = micro_batch(engine, step, number)
            found.micro_batches.append(len(inputs[1]))
            loss = engine.forward(*inputs)
            engine.backward(loss)
            assert not engine.at_boundary
            engine.step()
            losses.append(loss.item())
        assert engine.at_boundary
        assert engine.global_steps == step + 1
        found.losses.append(float(np.mean(losses)))
    found.weights = {name: weight.float().numpy() for name, weight in weights(engine).items()}
    found.global_samples = engine._engine.global_samples
    close(engine)
    return found


def refusals(stage: int) -> dict[str, str]:
    """Messages of changes that are refused; each leaves the engine as it was."""
    messages = {}
    of = replace(setting(stage, "fp32"), accumulation=2)
    engine = new_engine(new_model(), of, 4)
    loss = engine.forward(*micro_batch(engine, 0, 0))
    engine.backward(loss)
    messages["before step()"] = message_of(engine.set_micro_batch, 8)
    engine.step()
    messages["between micro-batches"] = message_of(engine.set_micro_batch, 8)
    loss = engine.forward(*micro_batch(engine, 0, 1))
    engine.backward(loss)
    engine.step()
    messages["no divisor"] = message_of(engine.set_micro_batch, 3)
    messages["nothing"] = message_of(engine.set_micro_batch, 0)
    assert (engine.resolved.micro_batch, engine.resolved.accumulation) == (4, 2)
    close(engine)
    return messages
