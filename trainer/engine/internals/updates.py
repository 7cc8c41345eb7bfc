"""An update that a gradient which is not finite cancels on all ranks, at the price of one wait for the device.

DeepSpeed's own check waits once for every parameter group.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.runtime import utils as deepspeed_utils
from deepspeed.runtime.zero import stage_1_and_2


def step_if_finite(engine: deepspeed.DeepSpeedEngine) -> bool:
    """`engine.step()` at an accumulation boundary, cancelled where the averaged gradient has an inf or a NaN. Returns
    whether the update was applied.

    DeepSpeed's wrappers check by themselves. Stage 0 under fp32 has no wrapper around AdamW and no check, so for this
    one call AdamW's `step` is put out of action. All ranks hold the same averaged gradient there and decide alike."""
    if engine.optimizer is not engine.basic_optimizer:
        with _norm_read_once(engine.optimizer):
            engine.step()
        return engine.was_step_applied()
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    if bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all()):
        engine.step()
        return True
    engine.optimizer.step = lambda: None
    try:
        engine.step()
    finally:
        del engine.optimizer.step  # the class's own again
    engine.skipped_steps += 1
    return False


@contextmanager
def _norm_read_once(wrapper: Any) -> Iterator[None]:
    """While the wrapper of ZeRO-1 or 2 updates, have it wait for the device once. Changes no bit of what it computes.

    Its module's functions that check norms are exchanged for the time. ``is_invalid_grad_norm`` reads the global norm,
    with clipping anew for each group. ``mask_nan_or_inf_with_val_inplace`` makes a -1 on the device for each group, and
    the host waits for such a copy. ``check_overflow`` asks under bf16 whether a gradient is not finite; then the norm,
    which is checked right after it, is not finite either.

    ZeRO-3 reads the norm once by itself. Its copy of a -1 for each group is in the middle of a long function."""
    known: list[tuple[Any, bool]] = []

    def is_invalid_grad_norm(norm: Any) -> bool:
        if not known or known[-1][0] is not norm:
            known.append((norm, deepspeed_utils.is_invalid_grad_norm(norm)))
        return known[-1][1]

    def mask_nan_or_inf_with_val_inplace(norm: torch.Tensor, device: Any = None, val: float = -1.0) -> None:
        norm.masked_fill_(~norm.isfinite(), val)

    exchanged = {f.__name__: f for f in (is_invalid_grad_norm, mask_nan_or_inf_with_val_inplace)}
    originals = {name: getattr(deepspeed_utils, name) for name in exchanged}
    norm_tells_all = (
        getattr(wrapper, "dtype", None) == torch.bfloat16 and getattr(wrapper, "cpu_offload", None) is False
    )
    try:
        vars(stage_1_and_2).update(exchanged)
        if norm_tells_all:
            wrapper.check_overflow = lambda **_: None
        yield
    finally:
        vars(stage_1_and_2).update(originals)
        if norm_tells_all:
            del wrapper.check_overflow  # the class's own again
