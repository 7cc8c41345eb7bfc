"""Losses and gradients that are not finite, beside a reference that never saw those steps: runs on the ranks."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from tests.engine.cases import FREEZES, STEPS, Setting, engine_for, learning_rates, new_model, train_step, weights
from tests.engine.small_vit import batch
from tests.engine.trajectory import new_reference
from trainer.engine.engine import FreezingEngine

POISONS = {0: "input", 2: "loss", 4: "gradient"}
"""step → what is wrong in it: before the first update, right after the first freeze, right before the second."""
FP16_POISONS = {6: "gradient", 7: "input"}
"""Later than fp16's search for a loss scale, and right before the scale would double."""


@dataclass
class PoisonedTrajectory:
    """A rank's training beside the reference's; `moved` are the steps whose cancelled update changed something."""

    weight_difference: float = 0.0
    moved: list[int] = field(default_factory=list)
    bad_steps: list[int] = field(default_factory=list)  # the engine's count after each step
    in_a_row: list[int] = field(default_factory=list)
    skipped: tuple[int, int] = (0, 0)
    scale: tuple[float, float] = (1.0, 1.0)
    global_steps: int = 0


def poisoned_trajectory(setting: Setting) -> dict[str, Any]:
    """Train through two freezes; the poisoned steps must pass as if only the step number had moved."""
    poisons = FP16_POISONS if setting.precision == "fp16" else POISONS
    reference, found = new_reference(setting), PoisonedTrajectory()
    with engine_for(new_model(), setting) as engine:
        for step in range(STEPS):
            if step in FREEZES:
                engine.freeze(FREEZES[step])
                reference.model.freeze_prefix(FREEZES[step])
            if step in poisons:
                before = whole_state(engine)
                train_poisoned_step(engine, step, poisons[step])
                found.moved += [step] if differs(before, whole_state(engine)) else []
                reference.skip()
            else:
                train_step(engine, step)
                reference.step(step, learning_rates(step, reference.model.num_units, reference.model.frozen_units))
            found.bad_steps.append(engine.bad_steps)
            found.in_a_row.append(engine.bad_steps_in_a_row)
        final = weights(engine)
        found.skipped = (engine.skipped_steps, reference.loss_scale.skipped if reference.loss_scale else len(poisons))
        found.scale = (engine.loss_scale, reference.loss_scale.scale if reference.loss_scale else 1.0)
        found.global_steps = engine.global_steps
    found.weight_difference = max(
        (final[n].float() - p.detach().float()).abs().max().item() for n, p in reference.model.named_parameters()
    )
    return asdict(found)


def train_poisoned_step(engine: FreezingEngine, step: int, poison: str) -> None:
    """A step in which the last rank's last micro-batch is not finite, in its pixels, its loss or its gradient alone."""
    engine.set_learning_rates(learning_rates(step, engine.model.num_units, engine.model.frozen_units))
    for micro_step in range(engine.resolved.accumulation):
        images, labels = batch(step, micro_step * dist.get_world_size() + dist.get_rank())
        hit = dist.get_rank() == dist.get_world_size() - 1 and micro_step == engine.resolved.accumulation - 1
        if hit and poison == "input":
            images[0, 0, 0, 0] = torch.nan
        loss = engine.forward(images, labels)
        if hit and poison == "loss":
            loss = loss + torch.inf  # whose gradient is finite
        if hit and poison == "gradient":
            loss.register_hook(lambda gradient: gradient * torch.inf)
        engine.backward(loss)
        engine.step()


def whole_state(engine: FreezingEngine) -> dict[str, torch.Tensor]:
    """Everything that an update changes: weights, this rank's masters and moments, and the optimizer's step count."""
    state = {f"weight {name}": weight for name, weight in weights(engine).items()}
    for fragment in engine.fragments(owned_only=False):
        for kind, values in {"master": fragment.master, **fragment.moments}.items():
            state[f"{kind} {fragment.name}"] = values.clone()
    return state | {"steps": torch.tensor(engine.resume_state()["optimizer_steps"])}


def differs(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() != b.keys() or any(not torch.equal(a[name], b[name]) for name in a)


def overflow_without_a_lower_scale(fp16: dict[str, Any]) -> list[tuple[int, int, float]]:
    """fp16 at a scale that overflows and cannot fall: (bad steps, in a row, loss scale) after each of three steps, with
    a freeze before the last."""
    found = []
    with fp16_options(fp16), engine_for(new_model(), Setting(2, "fp16")) as engine:
        for step in range(3):
            if step == 2:
                engine.freeze(1)
            train_step(engine, step)
            found.append((engine.bad_steps, engine.bad_steps_in_a_row, engine.loss_scale))
    return found


@contextlib.contextmanager
def fp16_options(options: dict[str, Any]) -> Iterator[None]:
    """Within, the ds_configs of the cases hold these fp16 options as well."""
    from tests.engine import cases

    original: Callable[..., Any] = cases.resolve_ds_config

    def with_options(raw: dict[str, Any], **more: Any) -> Any:
        return original(raw | {"fp16": raw["fp16"] | options}, **more)

    cases.resolve_ds_config = with_options
    try:
        yield
    finally:
        cases.resolve_ds_config = original
