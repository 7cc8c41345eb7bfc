"""A shipped ds_config at work: runs on the ranks."""

from typing import Any

import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from tests.engine.cases import close, new_model, train_step
from trainer.engine.config import OptimizerConfig
from trainer.engine.ds_config import resolve_ds_config
from trainer.engine.engine import FreezingEngine


def train_two_steps(raw: dict[str, Any]) -> int:
    """Make two updates with a freeze between them; how many of them the optimizer applied."""
    type(get_accelerator()).is_fp16_supported = lambda self: True  # slow on a CPU, but it works
    resolved = resolve_ds_config(
        raw,
        source="shipped",
        world_size=dist.get_world_size(),
        global_batch=4 * dist.get_world_size(),
        micro_batch=4,
        precision=None,
        clip_grad=1.0,
    )
    engine = FreezingEngine(new_model(), resolved, OptimizerConfig(clip_grad=1.0))
    train_step(engine, 0)
    engine.freeze(2)
    train_step(engine, 1)
    applied = engine.resume_state()["optimizer_steps"]
    close(engine)
    return applied
