"""Where an engine keeps masters, counters and the loss scale."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from trainer.engine.groups import ParameterGroup

Masters = list[list[torch.Tensor]]
"""fp32 tensors that the inner optimizer updates on this rank, by parameter group."""


def inner_optimizer(engine: deepspeed.DeepSpeedEngine) -> torch.optim.Optimizer:
    """The torch optimizer inside the wrapper (`engine.basic_optimizer`)."""
    return engine.basic_optimizer


def masters(engine: deepspeed.DeepSpeedEngine) -> Masters:
    """This rank's masters by parameter group; one per group, or per parameter (stage 0), or per sub-group (stage 3)."""
    wrapper = engine.optimizer
    if wrapper is engine.basic_optimizer:
        return [list(group["params"]) for group in wrapper.param_groups]
    if hasattr(wrapper, "fp32_partitioned_groups_flat"):
        by_group: Masters = [[] for _ in wrapper.param_groups]
        for sub_group, flat in enumerate(wrapper.fp32_partitioned_groups_flat):
            by_group[wrapper.sub_group_to_group_id[sub_group]].append(flat)
        return by_group
    if hasattr(wrapper, "single_partition_of_fp32_groups"):
        return [[shard] for shard in wrapper.single_partition_of_fp32_groups]
    return [list(group) for group in wrapper.fp32_groups]


@dataclass(frozen=True)
class Location:
    """Where this rank's part of a parameter lies: elements [start, start + length) of the flattened parameter are
    elements [offset, offset + length) of the flattened `master`."""

    master: torch.Tensor
    offset: int
    start: int
    length: int


def locate(
    engine: deepspeed.DeepSpeedEngine, group: ParameterGroup, group_masters: Sequence[torch.Tensor]
) -> Iterator[tuple[str, Location]]:
    """(name, location) of each parameter of a group that has a part on this rank, from the wrapper's own maps."""
    stage = engine.zero_optimization_stage()
    parameter: Any  # DeepSpeed hangs its maps on the parameters
    for position, (name, parameter) in enumerate(zip(group.parameter_names, group.parameters, strict=True)):
        if stage == 0:
            yield name, Location(group_masters[position], 0, 0, parameter.numel())
        elif stage == 3:
            shard = parameter.ds_tensor.ds_numel
            start = engine.optimizer._get_param_partition_rank(parameter) * shard
            length = min(shard, parameter.ds_numel - start)  # the last shard is padded
            sub_group, offset, _ = engine.optimizer.grad_position[engine.optimizer.get_param_id(parameter)]
            if length > 0:
                flat = engine.optimizer.fp32_partitioned_groups_flat[sub_group]
                yield name, Location(flat, offset, start, length)
        elif parameter._hp_mapping is not None:
            whole, shard = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
            yield name, Location(group_masters[0], shard.start, whole.start, whole.numel)


def raise_no_error_at_lowest_scale(engine: deepspeed.DeepSpeedEngine) -> None:
    """Let fp16's loss scaler skip updates at its lowest scale too, where DeepSpeed raises a bare `Exception`.

    The trainer counts such updates and ends the run in its own way. A rebuild keeps the scaler, and so this setting;
    ds_config has no key for it."""
    scaler: Any = getattr(engine.optimizer, "loss_scaler", None)
    if hasattr(scaler, "raise_error_at_min_scale"):
        scaler.raise_error_at_min_scale = False


def can_lower_loss_scale(engine: deepspeed.DeepSpeedEngine) -> bool:
    """Whether an overflow now would make DeepSpeed try again with a lower loss scale: fp16 with a dynamic scale that is
    above its minimum (``DynamicLossScaler.min_scale``)."""
    scaler: Any = getattr(engine.optimizer, "loss_scaler", None)
    return bool(getattr(scaler, "dynamic", False)) and scaler.cur_scale > scaler.min_scale


@torch.no_grad()
def whole_weight(parameter: Any) -> torch.Tensor:
    """A copy of a weight as the forward would use it, in its own dtype. Collective at ZeRO-3.

    There it is put together from the shards (``ds_tensor``, padded to equal lengths), and the parameter is left alone.
    DeepSpeed's ``GatheredParameters`` would release it again, also where it was to stay gathered
    (``stage3_param_persistence_threshold``), and so change what the next step sends."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach().clone()
    shard = parameter.ds_tensor.detach()
    group = parameter.ds_process_group
    whole = shard.new_empty(dist.get_world_size(group) * shard.numel())
    dist.all_gather_into_tensor(whole, shard, group=group)
    return whole[: parameter.ds_numel].view(parameter.ds_shape)


_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def loss_scaler_state(engine: deepspeed.DeepSpeedEngine) -> dict[str, float]:
    """The loss scaler's numbers (ZeRO-1 to 3). Only ``cur_scale``, 1, where the precision needs no scaling."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {field: getattr(scaler, field) for field in _SCALER_FIELDS if hasattr(scaler, field)}


def set_loss_scaler_state(engine: deepspeed.DeepSpeedEngine, state: dict[str, float]) -> None:
    """Put back what `loss_scaler_state` returned, as far as this engine's scaler has such fields."""
    scaler: Any = getattr(engine.optimizer, "loss_scaler", None)
    for field, value in state.items():
        if hasattr(scaler, field):
            setattr(scaler, field, value)


def set_counters(engine: deepspeed.DeepSpeedEngine, *, global_steps: int, skipped_steps: int) -> None:
    """Continue DeepSpeed's counters at an accumulation boundary, as if this engine had made all the steps itself."""
    engine.global_steps = global_steps
    engine.skipped_steps = skipped_steps
    engine.micro_steps = global_steps * engine.gradient_accumulation_steps()
    engine.global_samples = global_steps * engine.train_batch_size()


def set_micro_batch(engine: deepspeed.DeepSpeedEngine, micro_batch: int) -> None:
    """The same global batch in micro-batches of another size, from an accumulation boundary on.

    The first of DeepSpeed's two setters changes the global batch too, the second puts it back by way of the
    accumulation. Neither minds ``micro_steps``, whose remainder by the accumulation is what makes a boundary, nor the
    wrapper's copy of the accumulation."""
    global_batch = engine.train_batch_size()
    engine.set_train_micro_batch_size(micro_batch)
    engine.set_train_batch_size(global_batch)
    engine.micro_steps = engine.global_steps * engine.gradient_accumulation_steps()
    if hasattr(engine.optimizer, "gradient_accumulation_steps"):
        engine.optimizer.gradient_accumulation_steps = engine.gradient_accumulation_steps()
