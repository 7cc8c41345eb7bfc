"""What `benchmarks.freezing` measures: models with their schedules, and how a step with k frozen units is timed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from trainer.engine.ds_config import Precision, ResolvedDsConfig, resolve_ds_config
from trainer.engine.engine import FreezingEngine
from trainer.freezing.config import FreezingConfig
from trainer.freezing.schedule import FreezeSchedule
from trainer.model.config import ModelConfig
from trainer.model.flops import step_flops
from trainer.model.localmim import LocalMIM

FREEZING = FreezingConfig(how="cubic", t0=0.8)
EPOCHS, STEPS_PER_EPOCH = 100, 625  # ImageNet's 1,281,167 images in global batches of 2048
PARTS = ("forward", "backward", "update")
"""Of a step; the gradients' reduction belongs to the backward pass or to the update, as the ZeRO stage has it."""


@dataclass(frozen=True)
class Case:
    """A model, the share of its run that is warm-up, and the micro-batch and frozen counts that are measured.

    `one_at_a_time`: two engines of it do not fit into 12 GB."""

    name: str
    model: ModelConfig
    warmup: float
    micro_batch: int
    counts: tuple[int, ...]
    one_at_a_time: bool = False

    @property
    def schedule(self) -> FreezeSchedule:
        """FreezeOut cubic 0.8 over 100 epochs of ImageNet. Rates play no part in what a step costs."""
        total = EPOCHS * STEPS_PER_EPOCH
        depth = self.model.num_blocks
        return FreezeSchedule(FREEZING, depth, total, round(self.warmup * total), lr=1e-4, min_lr=0)

    @property
    def flops(self) -> list[int]:
        """Matmul FLOPs of one image's step by frozen units, 0 … depth."""
        return [step_flops(self.model, units).total for units in range(self.model.num_units)]


VIT_BASE = Case("ViT-B", ModelConfig(), warmup=0.1, micro_batch=8, counts=tuple(range(13)))
VIT_LARGE = Case(
    "ViT-L",
    ModelConfig(size="large", hog_bins=18),
    warmup=0.05,
    micro_batch=2,
    counts=(0, 1, 3, 5, 9, 13, 18, 23, 24),
    one_at_a_time=True,
)
TINY = Case(
    "tiny",
    ModelConfig(size="tiny", image_size=64, embed_dim=48, depth=4, num_heads=2, stages=[0, 1, 2, 3], decoder_dim=32),
    warmup=0.1,
    micro_batch=2,
    counts=(0, 1, 3, 4),
)


def interpolate(costs: Mapping[int, float], flops: Sequence[float]) -> list[float]:
    """The cost of every frozen count from those measured: linear in the FLOPs, which fall with every unit.

    Before the first of `costs` and after the last it stays what it is there."""
    counts = sorted(costs, reverse=True)  # by rising FLOPs, as numpy wants them
    return [float(cost) for cost in np.interp(flops, [flops[k] for k in counts], [costs[k] for k in counts])]


def resolved_config(
    micro_batch: int, zero_stage: int, world_size: int, precision: Precision = "fp32"
) -> ResolvedDsConfig:
    """DeepSpeed's defaults, without accumulation or clipping."""
    raw: dict[str, Any] = {"zero_optimization": {"stage": zero_stage}, "bf16": {"enabled": precision == "bf16"}}
    return resolve_ds_config(
        raw, source="benchmark", world_size=world_size, global_batch=micro_batch * world_size,
        micro_batch=micro_batch, precision=precision, clip_grad=0,
    )  # fmt: skip


def freeze_to(engine: FreezingEngine, frozen_units: int) -> None:
    """Freeze up to this count, which the engine may have reached already, and give the others a rate."""
    if frozen_units > engine.model.frozen_units:
        engine.freeze(frozen_units)
    engine.set_learning_rates([1e-4] * engine.model.num_units)


def random_batch(config: ModelConfig, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 pixels [images, 3, H, W] and the noise that masks them, float32 [images, L]."""
    pixels = torch.randint(0, 256, (images, 3, config.image_size, config.image_size), dtype=torch.uint8)
    return pixels, torch.rand(images, config.num_patches)


def timed_step(
    engine: FreezingEngine, images: torch.Tensor, noise: torch.Tensor, clock: Callable[[], float]
) -> list[float]:
    """Take one step; seconds of its `PARTS` by this clock."""
    moments = [clock()]
    loss, _ = engine.forward(images, noise)
    moments.append(clock())
    engine.backward(loss)
    moments.append(clock())
    engine.step()
    moments.append(clock())
    return [end - start for start, end in pairwise(moments)]


class Reference:
    """A plain model that never freezes, against which all else in the same minute is held: the machine's weather.

    A quarter of the micro-batch is enough for that."""

    def __init__(self, case: Case, precision: Precision = "fp32"):
        self._model = LocalMIM(case.model).to(torch.bfloat16 if precision == "bf16" else torch.float32)
        self._inputs = random_batch(case.model, max(1, case.micro_batch // 4))

    def seconds(self, clock: Callable[[], float]) -> float:
        """One forward and backward, without an update."""
        start = clock()
        loss, _ = self._model(*self._inputs)
        loss.backward()
        seconds = clock() - start
        self._model.zero_grad(set_to_none=True)
        return seconds
