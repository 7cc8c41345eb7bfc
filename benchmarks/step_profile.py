"""Where a step's time goes: torch's profiler, summed by kind of work, against the time that its FLOPs need."""

import time
from collections import defaultdict
from collections.abc import Callable

from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from trainer.model.config import ModelConfig

MATMUL, ATTENTION, HOG, OPTIMIZER = "matrix products", "attention", "HOG targets", "AdamW"
ELSEWHERE = "Python, dispatch and small kernels"
KINDS = {
    MATMUL: ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "GELU": ("aten::gelu",),
    "LayerNorm": ("aten::native_layer_norm",),
    "sums (gradients of biases)": ("aten::sum",),
    "copies, gathers and fills": (
        "aten::copy_", "aten::cat", "aten::fill_", "aten::zero_", "aten::index", "aten::gather", "aten::scatter",
    ),
    "additions and other element-wise work": (
        "aten::add", "aten::sub", "aten::mul", "aten::div", "aten::pow", "aten::avg_pool2d", "aten::mean",
    ),
}  # fmt: skip
"""Kind → beginnings of the operators' names; the first kind that fits counts. Kernels of attention, and whatever runs
inside HOG or the optimizer, are told apart before."""


def seconds_by_kind(step: Callable[[], object]) -> tuple[dict[str, float], float]:
    """Seconds by kind of work in one call of `step`, and the seconds of all of it, profiler included."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as measured:
        start = time.perf_counter()
        step()
        whole = time.perf_counter() - start
    seconds: dict[str, float] = defaultdict(float)
    for event in measured.events():
        seconds[_kind(event)] += event.self_cpu_time_total / 1e6
    seconds[ELSEWHERE] = whole - sum(time for kind, time in seconds.items() if kind != ELSEWHERE)
    return dict(seconds), whole


def attention_flops(config: ModelConfig) -> int:
    """FLOPs per image of the scores and of their products with the values, forward and backward, nothing frozen.

    The part of `flops.step_flops` that attention's own kernels compute; the rest are plain matrix products."""
    encoder = config.num_blocks * (1 + config.num_kept) ** 2 * config.width
    tokens = 1 + config.num_patches
    decoders = len(config.stage_blocks) * config.decoder_depth * tokens**2 * config.decoder_dim
    return 3 * 2 * 2 * (encoder + decoders)


def _kind(event: FunctionEvent) -> str:
    ancestor: FunctionEvent | None = event
    while ancestor is not None:
        if ancestor.name == HOG:
            return HOG
        if ancestor.name.startswith("Optimizer.step"):
            return OPTIMIZER
        ancestor = ancestor.cpu_parent
    if "scaled_dot_product" in event.name:
        return ATTENTION
    return next((kind for kind, names in KINDS.items() if event.name.startswith(names)), ELSEWHERE)
