"""What the ranks send each other in one optimizer step, by ZeRO stage: gradients reduced and weights gathered.

The rules are those of DeepSpeed 0.19.8, held against what real ranks send in tests/planning/test_traffic.py:

=====  ==========================================  ==============================================================
stage  gradients                                   weights
=====  ==========================================  ==============================================================
0      all-reduced once a step                     nothing
1      all-reduced once a step                     every live group all-gathered once a step, padded to 2·N elements
2      all-reduced every micro-batch               as stage 1
3      reduce-scattered every micro-batch,         every parameter in every forward that uses it, and again in the
       each parameter padded to N elements         backward if it was released in between; small ones once a step
=====  ==========================================  ==============================================================

ZeRO-1 and 2 all-reduce although a rank keeps only its own part: DeepSpeed joins the parts of all ranks into one call
unless ``use_multi_rank_bucket_allreduce`` is false, when it reduces each part to its owner. Norms and overflow flags,
one number each, are not counted.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

from trainer.engine.ds_config import ELEMENT_BYTES, ResolvedDsConfig
from trainer.planning.parameter_use import ParameterUse
from trainer.planning.partitions import ALIGNMENT
from trainer.planning.zero3_gathers import Zero3Limits, gathers_per_micro_batch, persistent_parameters


@dataclass(frozen=True)
class StepTraffic:
    """One optimizer step. Elements and bytes are of whole tensors, not of one rank's part; `sent_bytes` is what a rank
    puts on the wire for them, on average over the ranks, with ring algorithms."""

    reduced_elements: int = 0
    gathered_elements: int = 0
    reduced_bytes: int = 0
    gathered_bytes: int = 0
    sent_bytes: float = 0.0


def step_traffic(use: ParameterUse, ds: ResolvedDsConfig, world_size: int) -> StepTraffic:
    """What a model moves per optimizer step at one frozen count.

    A ring all-gather or reduce-scatter of b bytes over N ranks makes each send (N-1)/N · b, an all-reduce, which is
    both, twice that (Patarasuk and Yuan 2009). Offloading the optimizer changes nothing: it moves data between a rank
    and its own host. One rank alone sends nothing, and all figures are 0."""
    if world_size == 1:
        return StepTraffic()
    zero = ds.config.get("zero_optimization", {})
    all_reduces = _all_reduces(ds.zero_stage, zero)
    reduced = sum(map(sum, use.live_sizes))
    gathered = 0
    if ds.zero_stage == 3:
        if not all_reduces:
            reduced = _padded([size for sizes in use.live_sizes for size in sizes], world_size)
        gathered = _zero3_gathered(use, Zero3Limits.of(zero), ds.accumulation, world_size)
    elif ds.zero_stage > 0:
        gathered = _padded([sum(sizes) for sizes in use.live_sizes], ALIGNMENT * world_size)
    if ds.zero_stage >= 2:
        reduced *= ds.accumulation
    reduced_bytes = reduced * ELEMENT_BYTES[ds.config.get("communication_data_type") or ds.precision]
    gathered_bytes = gathered * ELEMENT_BYTES[ds.precision]
    return StepTraffic(
        reduced_elements=reduced,
        gathered_elements=gathered,
        reduced_bytes=reduced_bytes,
        gathered_bytes=gathered_bytes,
        sent_bytes=(world_size - 1) / world_size * ((2 if all_reduces else 1) * reduced_bytes + gathered_bytes),
    )


def _all_reduces(stage: int, zero: dict[str, Any]) -> bool:
    """Whether every rank gets the whole averaged gradient, wanted or not."""
    if stage == 0 or not zero.get("reduce_scatter", True):
        return True
    return stage < 3 and zero.get("use_multi_rank_bucket_allreduce", True)


def _zero3_gathered(use: ParameterUse, limits: Zero3Limits, accumulation: int, world_size: int) -> int:
    gathers = gathers_per_micro_batch(use, limits)
    passing = sum(times * _padded([use.sizes[name]], world_size) for name, times in gathers.items())
    persistent = persistent_parameters(use.sizes, limits)
    return accumulation * passing + _padded([use.sizes[name] for name in persistent], world_size)


def _padded(sizes: list[int], multiple: int) -> int:
    return sum(ceil(size / multiple) * multiple for size in sizes)
