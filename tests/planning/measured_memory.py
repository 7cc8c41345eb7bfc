"""What the real engine holds beside what was planned for it: runs on the ranks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from tests.engine.cases import Setting, engine_for, group_sizes
from tests.engine.freezes import live_tensor_bytes
from tests.engine.localmim_case import CONFIG, batch
from trainer.engine.engine import FreezingEngine
from trainer.model.localmim import LocalMIM
from trainer.planning.memory import StepMemory, optimizer_bytes, step_memory


@dataclass(frozen=True)
class Held:
    """Bytes alive on this rank. The batch, the loss and the model's buffers are left out."""

    after_forward: int
    after_backward: int
    """Of the first micro-batch of a step."""


@dataclass(frozen=True)
class Measured:
    """One frozen count: bytes on this rank, and the plan for it."""

    frozen_units: int
    parameters: int
    optimizer: int
    held: Held | None
    planned: StepMemory
    planned_optimizer: int


def memory_by_frozen_units(setting: Setting, looked_into: Sequence[int]) -> list[Measured]:
    """The third step with 0, 1, … units frozen (DeepSpeed settles in the first two), `held` for some of them."""
    torch.manual_seed(0)
    model = LocalMIM(CONFIG)
    found = []
    with engine_for(model, setting) as engine:
        for frozen_units in range(model.num_units):
            if frozen_units:
                engine.freeze(frozen_units)
            engine.set_learning_rates([1e-3] * model.num_units)
            _step(engine, 0)
            _step(engine, 1)
            found.append(_measured(engine, frozen_units in looked_into))
    return found


def fills_by_frozen_units(setting: Setting, overlap: bool) -> list[list[int]]:
    """The elements that each reduction of a micro-batch reduces, with 0, 1, … units frozen.

    `overlap`: the ds_config's ``overlap_comm``. ZeRO-3 leaves a linear function of its own to the process for good,
    whose backward gives a weight's gradient before the bias's: here it is torch's, as in a process of one run."""
    torch.manual_seed(0)
    model = LocalMIM(CONFIG)
    found = []
    with (
        patch.object(torch.nn.functional, "linear", torch._C._nn.linear),
        engine_for(model, setting, overlap_comm=overlap) as engine,
    ):
        for frozen_units in range(model.num_units):
            if frozen_units:
                engine.freeze(frozen_units)
            wrapper = engine._engine.optimizer
            average, fills = wrapper.average_tensor, []

            def watch(tensor: torch.Tensor, *args: Any, average=average, fills=fills) -> None:
                if tensor.numel():  # it begins with an empty bucket where the first parameter does not fit into one
                    fills.append(tensor.numel())
                average(tensor, *args)

            wrapper.average_tensor = watch
            engine.set_learning_rates([1e-3] * model.num_units)
            _step(engine, 0)
            found.append(fills)
    return found


def _step(engine: FreezingEngine, step: int, look: bool = False) -> Held | None:
    """One update, looked into during its first micro-batch."""
    held = None
    for piece in range(engine.resolved.accumulation):
        images, noise = batch(step, piece)
        loss, stage_losses = engine.forward(images, noise)
        aside = _bytes([*engine.model.buffers(), images, noise, loss, stage_losses])
        after_forward = live_tensor_bytes() - aside if look else 0
        engine.backward(loss)
        if look:
            held, look = Held(after_forward, live_tensor_bytes() - aside), False
        engine.step()
    return held


def _measured(engine: FreezingEngine, look: bool) -> Measured:
    model, ds, ranks = engine.model, engine.resolved, dist.get_world_size()
    held = _step(engine, 2, look)
    parameters = [getattr(parameter, "ds_tensor", parameter.data) for parameter in model.parameters()]
    return Measured(
        frozen_units=model.frozen_units,
        parameters=_bytes(parameters),
        optimizer=engine.optimizer_bytes(),
        held=held,
        planned=step_memory(CONFIG, ds, ranks, model.frozen_units, ds.micro_batch),
        planned_optimizer=sum(optimizer_bytes(group_sizes(engine), ds, ranks)),
    )


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
