"""Training through two freezes beside the reference: runs on the ranks, returns plain data for the tests to judge."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from tests.engine.cases import (
    FREEZES,
    INITIAL_SCALE,
    SCALE_WINDOW,
    STEPS,
    WEIGHT_DECAY,
    Setting,
    engine_for,
    group_sizes,
    learning_rates,
    new_model,
    train_step,
    weights,
)
from tests.engine.memory import expected_optimizer_bytes
from tests.engine.reference import LossScale, Reference
from trainer.engine.config import OptimizerConfig
from trainer.engine.engine import FreezingEngine

MATRIX = [
    Setting(stage, precision, clip, accumulation)
    for stage in (0, 1, 2, 3)
    for precision in ("fp32", "bf16", "fp16")
    for clip in (0.0, 0.5)
    for accumulation in (1, 2)
    if not (stage == 0 and precision == "fp16")
]
OFFLOADED = [
    Setting(stage, precision, clip, accumulation, offload=True)
    for stage in (1, 2, 3)
    for precision in ("fp32", "bf16", "fp16")
    for clip in (0.0, 0.5)
    for accumulation in (1, 2)
]


def tolerance(setting: Setting) -> float:
    """Largest difference of a weight from the reference's that a setting may show; 0 = equal in every bit.

    The engine sums the gradient norm shard by shard, so with clipping its last bit differs, and DeepSpeedCPUAdam
    rounds the end of a shard differently from its middle. Under fp32 that stays a last bit of the weights; under bf16
    and fp16 it can flip the rounding of a weight, which moves all that follows."""
    if not setting.clip and not setting.offload:
        return 0.0
    return {"fp32": 1e-6, "bf16": 4e-3, "fp16": 2e-3}[setting.precision]


def build_cpu_adam() -> None:
    """Compile DeepSpeedCPUAdam once, on rank 0: a minute on a fresh machine, nothing later."""
    from deepspeed.ops.op_builder import CPUAdamBuilder

    if dist.get_rank() == 0:
        CPUAdamBuilder().load()
    dist.barrier()


@dataclass
class Trajectory:
    """A rank's training beside the reference's: largest absolute differences, and what each freeze left."""

    loss_difference: float = 0.0
    weight_difference: float = 0.0
    skipped: tuple[int, int] = (0, 0)
    scale: tuple[float, float] = (1.0, 1.0)
    bytes_measured: list[int] = field(default_factory=list)
    bytes_expected: list[int] = field(default_factory=list)
    bytes_reported: list[int] = field(default_factory=list)
    frozen_units_moved: list[int] = field(default_factory=list)


def inner_optimizer(setting: Setting):
    """How the reference makes its AdamW: the implementation that the engine uses too."""

    def make(groups: list[dict]) -> torch.optim.Optimizer:
        options: dict[str, Any] = {"betas": OptimizerConfig().betas, "eps": OptimizerConfig().eps}
        if setting.offload:
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            return DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
        return torch.optim.AdamW(groups, **options)

    return make


def new_reference(setting: Setting) -> Reference:
    """Plain AdamW in one process, as the ranks together have to behave under this setting."""
    return Reference(
        new_model(),
        setting.precision,
        dist.get_world_size(),
        setting.accumulation,
        setting.clip,
        averages_every_micro_batch=setting.stage >= 2,
        make_optimizer=inner_optimizer(setting),
        weight_decay=WEIGHT_DECAY,
        loss_scale=LossScale(INITIAL_SCALE, SCALE_WINDOW) if setting.precision == "fp16" else None,
    )


def trajectory(setting: Setting) -> dict[str, Any]:
    """Train through two freezes beside the reference and compare."""
    reference = new_reference(setting)
    found = Trajectory()
    frozen_weights: dict[str, torch.Tensor] = {}
    with engine_for(new_model(), setting) as engine:
        for step in range(STEPS):
            if step in FREEZES:
                report = engine.freeze(FREEZES[step])
                reference.model.freeze_prefix(FREEZES[step])
                _record_bytes(found, engine, report.optimizer_bytes_after)
                now = weights(engine)
                frozen_weights |= {n: w for n, w in now.items() if engine.model.unit_of(n) in report.units}
            losses = train_step(engine, step)
            rates = learning_rates(step, reference.model.num_units, reference.model.frozen_units)
            expected = [by_rank[dist.get_rank()] for by_rank in reference.step(step, rates)]
            found.loss_difference = max(
                [found.loss_difference, *(abs(a - b) for a, b in zip(losses, expected, strict=True))]
            )
        final = weights(engine)
        found.skipped = (engine.skipped_steps, reference.loss_scale.skipped if reference.loss_scale else 0)
        found.scale = (engine.loss_scale, reference.loss_scale.scale if reference.loss_scale else 1.0)
    found.weight_difference = max(
        (final[n].float() - p.detach().float()).abs().max().item() for n, p in reference.model.named_parameters()
    )
    found.frozen_units_moved = sorted(
        {reference.model.unit_of(n) for n, w in frozen_weights.items() if not torch.equal(w, final[n])}
    )
    return asdict(found)


def _record_bytes(found: Trajectory, engine: FreezingEngine, reported: list[int]) -> None:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    started = bool(engine.resume_state()["optimizer_steps"])
    found.bytes_measured.append(engine.optimizer_bytes())
    found.bytes_reported.append(reported[rank])
    found.bytes_expected.append(
        expected_optimizer_bytes(
            group_sizes(engine), zero_stage=engine.resolved.zero_stage, world_size=world_size, moments=started
        )
    )
