"""What one rank's memory holds in a training step, part by part: the rules of DeepSpeed 0.19.8's ZeRO stages.

T elements still train of P, on N ranks, with e bytes for each in the training's precision; "padded" as ZeRO pads:

=====  ==============  ======================================  ===================  ==============================
stage  parameters      gradients                               masters and moments  buffers
=====  ==============  ======================================  ===================  ==============================
0      e·P             e·T                                     (4 + 8)·T            none
1      e·P, padded     e·T                                     (4 + 8)·T/N, padded  the buckets of the reduction
2      e·P, padded     e·every parameter that the rank's part  as stage 1           as stage 1
                       touches; twice with accumulation
3      e·P/N, padded   e·T/N, padded                           as stage 1           buckets, and gathered weights
=====  ==============  ======================================  ===================  ==============================

Stage 0 under fp32 has no masters: the weights themselves are updated. One rank reduces nothing, and ZeRO-1 and 2 need
no buckets; on more, what they reduce is there twice for a moment (`reductions`). With the optimizer offloaded, masters,
moments and a copy of the gradients are in host memory. Imports torch for the shapes of the model, which it never fills.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.engine.ds_config import ELEMENT_BYTES, Precision, ResolvedDsConfig
from trainer.model.config import ModelConfig
from trainer.planning.activations import saved_activation_bytes, working_bytes
from trainer.planning.parameter_use import ParameterUse, planned_use
from trainer.planning.partitions import most_elements_touched, part_elements
from trainer.planning.reductions import bucket_fills, most_during_reductions
from trainer.planning.zero3_gathers import Zero3Limits, peak_gathered_elements, persistent_parameters

Groups = Sequence[Sequence[int]]
"""Sizes of the parameters that still train, by parameter group."""

_FLOAT32 = 4
_MOMENTS = 2 * _FLOAT32
_ALL_REDUCE_ELEMENTS = 500_000_000
"""Stage 0 copies the gradients into buffers of at most so many elements to all-reduce them."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes on the rank that holds most, in a step at one frozen count."""

    parameters: int
    gradients: int
    """As the last micro-batch of a step ends."""
    masters: int
    moments: int
    activations: int
    """What autograd saves."""
    working: int
    """What a micro-batch needs beside that for a moment."""
    buffers: int
    """What gradients are reduced in, and what ZeRO-3 has gathered."""
    early_gradients: int
    """Of the gradients, those that are there as the last micro-batch begins its backward pass; at ZeRO-2 those of the
    earlier ones."""
    reduction: int
    """At the worst reduction of ZeRO-1 or 2, instead of gradients, activations and working: see `reductions`."""
    update: int
    """Copies of gradients during the update, when activations are gone."""
    host: int
    """Host memory, 0 unless the optimizer is offloaded: masters and moments, which it includes, and gradients."""

    @property
    def total(self) -> int:
        """Bytes on the device at the peak of a step.

        Not in it: what the allocator wastes, and what NCCL, cuBLAS and the CUDA context take. A little too much where
        the parts are not largest at the same moment: at stages 0, 1 and 3, and on one rank, gradients arrive as
        activations go."""
        state = self.parameters + (0 if self.host else self.masters + self.moments)
        backward = self.early_gradients + self.activations + self.working
        return state + max(max(backward, self.reduction) + self.buffers, self.gradients + self.update)


def step_memory(
    config: ModelConfig,
    ds: ResolvedDsConfig,
    world_size: int,
    frozen_units: int,
    micro_batch: int,
    *,
    checkpoint_activations: bool = False,
) -> StepMemory:
    """Memory of a step in micro-batches of `micro_batch` images per rank, with the first `frozen_units` units frozen.

    Raises ValueError unless they divide the rank's share of the global batch."""
    ds = ds.with_micro_batch(micro_batch)
    use = planned_use(config, frozen_units, checkpoint_activations=checkpoint_activations)
    groups = use.live_sizes
    masters, moments = optimizer_bytes(groups, ds, world_size)
    weights_are_masters = ds.zero_stage == 0 and ds.precision == "fp32"
    images = (config, frozen_units, micro_batch, ds.precision)
    activations = saved_activation_bytes(*images, checkpoint_activations=checkpoint_activations)
    working = working_bytes(*images, checkpoint_activations=checkpoint_activations)
    gradients = _gradients(groups, ds, world_size)
    early, reduction = _reduction(use, ds, world_size, gradients, activations + working)
    return StepMemory(
        parameters=_parameters(config, ds, world_size),
        gradients=gradients,
        masters=0 if weights_are_masters else masters,
        moments=moments,
        activations=activations,
        working=working,
        buffers=_buffers(use, ds, world_size),
        early_gradients=early,
        reduction=reduction,
        update=0 if ds.offload_optimizer else _update(groups, ds, world_size),
        host=masters + moments + _host_gradients(groups, ds, world_size) if ds.offload_optimizer else 0,
    )


def optimizer_bytes(groups: Groups, ds: ResolvedDsConfig, world_size: int) -> tuple[int, int]:
    """Masters and moments of one rank, as `FreezingEngine.optimizer_bytes` adds them up.

    That counts the weights as masters where the optimizer updates the weights themselves, at stage 0 under fp32."""
    elements = sum(part_elements(sizes, ds.zero_stage, world_size) for sizes in groups)
    return elements * _FLOAT32, elements * _MOMENTS


def reference_bytes(config: ModelConfig, images: int) -> int:
    """Host memory of rank 0 for what `trainer.freezing.probe` compares with while nothing is frozen: fp32 tokens that
    every unit gave for so many images."""
    return images * (1 + config.num_kept) * config.width * config.num_units * _FLOAT32


def _parameters(config: ModelConfig, ds: ResolvedDsConfig, world_size: int) -> int:
    """Frozen or not: a frozen group stays where it was, with its padding."""
    groups = planned_use(config, 0).live_sizes
    copies = world_size if ds.zero_stage in (1, 2) else 1  # there every rank holds the parts of all, padding included
    elements = copies * sum(part_elements(sizes, ds.zero_stage, world_size) for sizes in groups)
    return elements * ELEMENT_BYTES[ds.precision]


def _gradients(groups: Groups, ds: ResolvedDsConfig, world_size: int) -> int:
    """Gradients on the device. ZeRO-2 keeps those of a parameter whole on every rank that has a piece of it, and while
    it adds up micro-batches it holds the sum and the latest. Offloaded, the sum is in host memory."""
    size = ELEMENT_BYTES[ds.precision]
    if ds.zero_stage < 2:
        return sum(map(sum, groups)) * size
    if ds.zero_stage == 3:
        if ds.offload_optimizer:
            return 0
        return sum(part_elements(sizes, 3, world_size) for sizes in groups) * ELEMENT_BYTES[accumulates_in(ds)]
    if _adds_up_in_fp32(ds):
        return sum(part_elements(sizes, 2, world_size) for sizes in groups) * _FLOAT32
    sums_up = ds.accumulation > 1
    copies = int(sums_up) if ds.offload_optimizer else 1 + sums_up
    return copies * most_elements_touched(groups, world_size) * size


def _host_gradients(groups: Groups, ds: ResolvedDsConfig, world_size: int) -> int:
    """What the offloaded optimizer keeps of gradients, and of weights on their way back to the device."""
    size = ELEMENT_BYTES[ds.precision]
    part = sum(part_elements(sizes, ds.zero_stage, world_size) for sizes in groups)
    if ds.zero_stage == 3:
        return part * (_FLOAT32 + ELEMENT_BYTES[accumulates_in(ds)])
    summed = most_elements_touched(groups, world_size) if ds.zero_stage == 2 and ds.accumulation > 1 else 0
    largest = max(max(sizes) for sizes in groups)
    return part * (_FLOAT32 + size) + (summed + largest) * size


def _reduction(
    use: ParameterUse, ds: ResolvedDsConfig, world_size: int, gradients: int, in_backward: int
) -> tuple[int, int]:
    """`StepMemory.early_gradients` and `StepMemory.reduction`; of bytes, `gradients` and what the backward pass needs
    beside them as it begins."""
    if ds.zero_stage not in (1, 2) or ds.offload_optimizer or _adds_up_in_fp32(ds) or world_size == 1:
        return gradients, 0
    zero: dict[str, Any] = ds.config["zero_optimization"]
    size = ELEMENT_BYTES[ds.precision]
    own = most_elements_touched(use.live_sizes, world_size) * size
    early = gradients - own if ds.zero_stage == 2 else gradients
    after_backward = ds.zero_stage == 1 and not zero.get("overlap_comm")
    reduction = most_during_reductions(
        bucket_fills(use, int(zero["reduce_bucket_size"]), after_backward=after_backward),
        size=size,
        own=own,
        held=early if ds.zero_stage == 2 else 0,
        in_backward=0 if after_backward else in_backward,
        stays=ds.zero_stage == 1,
    )
    return early, reduction


def _buffers(use: ParameterUse, ds: ResolvedDsConfig, world_size: int) -> int:
    if ds.zero_stage == 0:
        return 0
    if ds.zero_stage < 3 and world_size == 1 and not ds.offload_optimizer and not _adds_up_in_fp32(ds):
        return 0  # `engine.internals.one_rank` takes the bucket away
    zero: dict[str, Any] = ds.config["zero_optimization"]
    bucket = int(zero["reduce_bucket_size"])
    size = ELEMENT_BYTES[ds.precision]
    if ds.zero_stage < 3:
        offloaded = max(map(max, use.live_sizes)) if ds.offload_optimizer else 0
        return size * ((2 if zero.get("overlap_comm") else 1) * bucket + offloaded)
    limits = Zero3Limits.of(zero)
    persistent = sum(use.sizes[name] for name in persistent_parameters(use.sizes, limits))
    return size * (bucket + persistent + peak_gathered_elements(use, limits))


def _update(groups: Groups, ds: ResolvedDsConfig, world_size: int) -> int:
    """Stage 0 all-reduces copies of the gradients, and under bf16 then makes fp32 ones of all; the other stages make
    a joined and an fp32 copy, one group at a time."""
    size, live = ELEMENT_BYTES[ds.precision], sum(map(sum, groups))
    if ds.zero_stage == 0:
        return max(min(live, _ALL_REDUCE_ELEMENTS) * size, live * _FLOAT32 if ds.precision != "fp32" else 0)
    return max(part_elements(sizes, ds.zero_stage, world_size) for sizes in groups) * (size + _FLOAT32)


def _adds_up_in_fp32(ds: ResolvedDsConfig) -> bool:
    """Whether ZeRO-2 adds up the gradients of this rank's part alone, in fp32 beside a 16-bit training."""
    return ds.precision != "fp32" and accumulates_in(ds) == "fp32"


def accumulates_in(ds: ResolvedDsConfig) -> Precision:
    """The type in which the gradients of micro-batches are added up."""
    return ds.config.get("data_types", {}).get("grad_accum_dtype") or ds.precision
