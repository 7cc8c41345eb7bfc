"""The only module that touches what DeepSpeed keeps private. Tested with DeepSpeed 0.19.8 and torch 2.14.1.

Freezing on a live engine means giving `DeepSpeedEngine` a new optimizer wrapper over fewer parameter groups while the
engine, its counters and the model stay. DeepSpeed offers no such call, so each function below does one thing with a
private attribute and says which and why. When DeepSpeed moves one of them, tests/engine fails and this file changes.

Names used here: the *inner* optimizer is torch's AdamW or DeepSpeedCPUAdam; the *wrapper* is the ZeRO optimizer that
DeepSpeed puts around it; a *master* is an fp32 tensor that the inner optimizer updates (a shard of a group or, without
ZeRO, a whole parameter).

===========  ========  ==========================  ====================================================
ZeRO stage   precision wrapper                     masters
===========  ========  ==========================  ====================================================
0            fp32      none                        the parameters themselves
0            bf16      FP16_UnfusedOptimizer       ``fp32_groups[group][parameter]``
1, 2         any       DeepSpeedZeroOptimizer      ``single_partition_of_fp32_groups[group]``
3            any       …Optimizer_Stage3           ``fp32_partitioned_groups_flat[sub-group]``
===========  ========  ==========================  ====================================================
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero import parameter_offload
from deepspeed.utils import groups as process_groups

from trainer.engine.groups import ParameterGroup

TESTED_DEEPSPEED = "0.19.8"

logger = logging.getLogger(__name__)

Masters = list[list[torch.Tensor]]
"""fp32 tensors that the inner optimizer updates on this rank, by parameter group."""


def warn_if_untested(rank: int) -> None:
    """Say once, on rank 0, that the installed DeepSpeed is not the one that the private attributes were tested on."""
    if rank == 0 and deepspeed.__version__ != TESTED_DEEPSPEED:
        logger.warning(
            "DeepSpeed %s is installed; freezing relies on private parts of it and was tested on %s. "
            "Run `pytest tests/engine` before a long training.",
            deepspeed.__version__,
            TESTED_DEEPSPEED,
        )


def skip_shared_memory_op() -> None:
    """Keep `deepspeed.init_distributed` from compiling its CPU shared-memory op.

    On a CPU box it compiles for half a minute, needs a compiler, and serves only DeepSpeed's inference. There is no
    public switch; DeepSpeed asks this table whether the op is compatible."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


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


def step_if_finite(engine: deepspeed.DeepSpeedEngine) -> bool:
    """`engine.step()` at an accumulation boundary, cancelled where the averaged gradient has an inf or a NaN. Returns
    whether the update was applied.

    DeepSpeed's wrappers check by themselves. Stage 0 under fp32 has no wrapper around AdamW and no check, so for this
    one call AdamW's `step` is put out of action. All ranks hold the same averaged gradient there and decide alike.
    Reading the answer makes the host wait for the device once a step, as the wrappers do at the other stages."""
    if engine.optimizer is not engine.basic_optimizer:
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


def undo_constructor_step(engine: deepspeed.DeepSpeedEngine) -> None:
    """Take back the optimizer step that stage 0's bf16 wrapper makes in its constructor.

    `FP16_UnfusedOptimizer.initialize_optimizer_states` steps on zero gradients to allocate the moments. That applies
    weight decay once and starts bias correction at step 1. A no-op for every other wrapper."""
    if hasattr(engine.optimizer, "fp32_groups"):
        inner_optimizer(engine).state.clear()
        engine.optimizer.refresh_fp32_params()


def rebuild_wrapper(
    engine: deepspeed.DeepSpeedEngine, groups: Sequence[ParameterGroup], survivors: Sequence[int]
) -> None:
    """Replace the optimizer wrapper by a new one over the `survivors` (indices into `groups`) and carry their masters,
    moments and the loss scaler over.

    `groups` describes the live groups, in the order of the inner optimizer's. Nothing is communicated, except that
    ZeRO-3 synchronises the ranks when it sets up its partitions: a shard depends on its group and the number of ranks
    only. The inner optimizer and its group dicts stay the same objects. Peak memory grows by the surviving masters
    while both wrappers exist."""
    inner = inner_optimizer(engine)
    kept = [[(master, inner.state.get(master)) for master in masters(engine)[index]] for index in survivors]
    group_dicts = [inner.param_groups[index] for index in survivors]
    for index, group_dict in enumerate(inner.param_groups):
        if index not in survivors:
            group_dict["params"] = []  # whoever still holds the dict must not hold the shard
    if engine.optimizer is inner:  # stage 0, fp32: the optimizer has no wrapper
        inner.param_groups[:] = group_dicts
        inner.state = defaultdict(dict, {master: state for pairs in kept for master, state in pairs if state})
        return
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    _destroy_wrapper(engine)
    for index, group_dict in zip(survivors, group_dicts, strict=True):
        group_dict["params"] = list(groups[index].parameters)
    inner.param_groups[:] = group_dicts
    inner.state = defaultdict(dict)
    engine._configure_optimizer(inner, None)
    if engine._support_torch_style_backward:  # DeepSpeedEngine.__init__ registers this, _configure_optimizer does not
        engine.optimizer.register_grad_acc_post_hook(engine._backward_post_hook)
    undo_constructor_step(engine)
    for new_masters, pairs in zip(masters(engine), kept, strict=True):
        for new, (old, state) in zip(new_masters, pairs, strict=True):
            new.data.copy_(old.data)
            if state:
                inner.state[new] = state
    if scaler is not None:
        engine.optimizer.loss_scaler = scaler


def _destroy_wrapper(engine: deepspeed.DeepSpeedEngine) -> None:
    """Remove the wrapper's hooks and every reference to it.

    ZeRO-3 leaves ``pre_bwd_fn``, ``post_bwd_fn`` and a counter on each module, closures over the old parameter
    coordinator that the next wrapper would reuse. They keep the old shards alive and hide the backward pass from the
    new prefetch trace, after which every parameter is gathered twice per step. ``FWD_MODULE_STACK`` is a global list
    that each ZeRO-3 wrapper pushes the model onto."""
    wrapper = engine.optimizer
    if hasattr(wrapper, "destroy"):
        wrapper.destroy()
    if hasattr(wrapper, "parameter_offload"):
        for module in engine.module.modules():
            for attribute in ("pre_bwd_fn", "post_bwd_fn", "applied_pre_backward_ref_cnt"):
                module.__dict__.pop(attribute, None)
        stack = parameter_offload.FWD_MODULE_STACK
        stack[:] = [module for module in stack if module is not engine.module]
    engine.optimizer = None


def detach_frozen(parameter: Any) -> None:
    """Give a frozen parameter storage of its own and clear what ties it to a destroyed wrapper.

    Its data was a view into the flat buffer of its group (ZeRO-1/2) or of the whole model (ZeRO-3), which one such
    view keeps alive."""
    parameter.grad = None
    for attribute in ("_hp_mapping", "_hp_grad", "grad_accum", "_zero_optimizer"):
        if hasattr(parameter, attribute):
            setattr(parameter, attribute, None)
    if hasattr(parameter, "ds_tensor"):
        parameter.ds_tensor.data = parameter.ds_tensor.data.clone()
    else:
        parameter.data = parameter.data.clone()


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


def give_world_group_timeout(timeout: timedelta) -> None:
    """Make the process group that DeepSpeed reduces gradients in, with `timeout`.

    DeepSpeed would make this clone of the world group itself, and torch would give it a timeout of its own: 10 minutes
    on NCCL, whatever `init_process_group` was told."""
    process_groups._WORLD_GROUP = torch.distributed.new_group(timeout=timeout)
