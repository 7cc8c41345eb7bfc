"""What the cases share: the settings that the engine promises to support, and a training step under each."""

import gc
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from tests.engine.small_vit import SmallViT, batch
from trainer.engine.config import OptimizerConfig
from trainer.engine.ds_config import ResolvedDsConfig, resolve_ds_config
from trainer.engine.engine import FreezingEngine

STEPS = 8
FREEZES = {2: 1, 5: 3}
"""step → frozen units from then on."""
INITIAL_SCALE, SCALE_WINDOW = 2**20, 3
"""fp16 overflows at this scale for more steps than pass before the first freeze, then recovers and doubles."""
WEIGHT_DECAY = 0.05


@dataclass(frozen=True)
class Setting:
    """One point of the matrix that the engine promises to support."""

    stage: int
    precision: str
    clip: float = 0.0
    accumulation: int = 1
    offload: bool = False
    pieces: int = 1
    """Micro-batch in pieces of `small_vit.batch`, 4 samples each."""

    def __str__(self) -> str:
        parts = [f"zero{self.stage}", self.precision, *(["offload"] if self.offload else [])]
        parts += [f"clip{self.clip:g}", f"accumulation{self.accumulation}"]
        return "-".join([*parts, *([f"micro{4 * self.pieces}"] if self.pieces > 1 else [])])


def resolved_config(setting: Setting, **zero: Any) -> ResolvedDsConfig:
    """The ds_config of a setting. Buckets are tiny so that a small model fills several."""
    zero_section: dict[str, Any] = {"stage": setting.stage, "reduce_bucket_size": 5000, "overlap_comm": False}
    if setting.stage == 3:
        zero_section |= {"stage3_prefetch_bucket_size": 5000, "stage3_param_persistence_threshold": 0}
    if setting.offload:
        zero_section |= {"offload_optimizer": {"device": "cpu"}}
    raw: dict[str, Any] = {"zero_optimization": zero_section | zero}
    if setting.precision == "bf16":
        raw["bf16"] = {"enabled": True}
    if setting.precision == "fp16":
        type(get_accelerator()).is_fp16_supported = lambda self: True  # slow on a CPU, but it works
        raw["fp16"] = {
            "enabled": True,
            "initial_scale_power": int(math.log2(INITIAL_SCALE)),
            "loss_scale_window": SCALE_WINDOW,
            "hysteresis": 1,
        }
    world_size, micro_batch = dist.get_world_size(), 4 * setting.pieces
    return resolve_ds_config(
        raw,
        source="test",
        world_size=world_size,
        global_batch=micro_batch * setting.accumulation * world_size,
        micro_batch=micro_batch,
        precision=None,
        clip_grad=setting.clip,
    )


def new_model(seed: int = 0, depth: int = 4) -> SmallViT:
    torch.manual_seed(seed)
    return SmallViT(depth)


@contextmanager
def engine_for(model: torch.nn.Module, setting: Setting, **options: Any) -> Iterator[FreezingEngine]:
    config = OptimizerConfig(weight_decay=WEIGHT_DECAY, clip_grad=setting.clip)
    engine = FreezingEngine(model, resolved_config(setting, **options), config)
    try:
        yield engine
    finally:
        close(engine)
        del engine
        gc.collect()


def close(engine: FreezingEngine) -> None:
    """Remove DeepSpeed's hooks from the model, which outlive the engine otherwise; `destroy()` forgets two. A training
    ends with its process instead."""
    engine._engine.module_forward_pre_hook.remove()
    engine._engine.module_forward_post_hook.remove()
    engine._engine.destroy()


def gathered(engine: FreezingEngine) -> AbstractContextManager:
    """Inside this context every weight is whole on every rank, for reading. Collective at stage 3."""
    if engine.resolved.zero_stage != 3:
        return nullcontext()
    return deepspeed.zero.GatheredParameters(list(engine.model.parameters()))


def group_sizes(engine: FreezingEngine) -> list[tuple[int, ...]]:
    """Parameter sizes of each group that still trains, as `memory.expected_optimizer_bytes` takes them."""
    return [group.sizes for group in engine._groups]


def learning_rates(step: int, num_units: int, frozen_units: int) -> list[float | None]:
    """Another rate for every unit, falling with the step."""
    peak = 1e-3 * (1 + math.cos(math.pi * step / 20))
    return [None if unit < frozen_units else peak * 0.8**unit for unit in range(num_units)]


def micro_batch(engine: FreezingEngine, step: int, micro_step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's share of a step's global batch, which is the same for any ranks, micro-batch and accumulation."""
    pieces = engine.resolved.micro_batch // 4
    first = (micro_step * dist.get_world_size() + dist.get_rank()) * pieces
    images, labels = zip(*(batch(step, piece) for piece in range(first, first + pieces)), strict=True)
    return torch.cat(images), torch.cat(labels)


def train_step(engine: FreezingEngine, step: int) -> list[float]:
    """One update with this rank's micro-batches; their losses."""
    engine.set_learning_rates(learning_rates(step, engine.model.num_units, engine.model.frozen_units))
    losses = []
    for micro_step in range(engine.resolved.accumulation):
        loss = engine.forward(*micro_batch(engine, step, micro_step))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def weights(engine: FreezingEngine) -> dict[str, torch.Tensor]:
    """Whole weights in the precision of training, copied."""
    with gathered(engine):
        return {name: parameter.detach().clone() for name, parameter in engine.model.named_parameters()}


def message_of(action: Any, *args: Any) -> str:
    """What a refused call says, after the name of the exception; "accepted" if it is not refused."""
    try:
        action(*args)
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"
