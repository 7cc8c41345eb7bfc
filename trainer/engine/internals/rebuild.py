"""A new optimizer wrapper over fewer parameter groups, on the memory of the old one."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero import parameter_offload, stage3, stage_1_and_2
from deepspeed.runtime.zero.utils import defragment

from trainer.engine.groups import ParameterGroup
from trainer.engine.internals.one_rank import leave_gradients_of_one_rank
from trainer.engine.internals.start import TESTED_DEEPSPEED
from trainer.engine.internals.state import Masters, inner_optimizer, masters

logger = logging.getLogger(__name__)


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
    """Take all groups but the `survivors` (indices into `groups`) out of the optimizer; the survivors' masters, moments
    and the loss scaler stay as they are.

    `groups` describes the live groups, in the order of the inner optimizer's. The inner optimizer and the surviving
    group dicts stay the same objects. At stage 0 groups are simply dropped. At the others DeepSpeed constructs a new
    wrapper over the survivors. Nothing is communicated, except that ZeRO-3 synchronises the ranks when it sets up its
    partitions: a shard depends on its group and the number of ranks only.

    The dropped groups' state is freed first. Then memory grows by at most one group's weights and master at a time,
    because the new wrapper takes the old one's memory over group by group (`_take_over`)."""
    inner, wrapper = inner_optimizer(engine), engine.optimizer
    kept = [[(master, inner.state.get(master)) for master in masters(engine)[index]] for index in survivors]
    for index, group_dict in enumerate(inner.param_groups):
        if index not in survivors:
            group_dict["params"] = []  # whoever still holds the dict must not hold the shard
    inner.param_groups[:] = [inner.param_groups[index] for index in survivors]
    inner.state = defaultdict(dict)
    if engine.zero_optimization_stage() == 0:
        new_masters = [[master for master, _ in pairs] for pairs in kept]
        if wrapper is not inner:
            _drop_groups_of_unsharded(wrapper, survivors)
    else:
        scaler = wrapper.loss_scaler
        _destroy_wrapper(engine)
        del wrapper
        for group_dict, index in zip(inner.param_groups, survivors, strict=True):
            group_dict["params"] = list(groups[index].parameters)
        _construct_wrapper(engine, [[master for master, _ in pairs] for pairs in kept])
        engine.optimizer.loss_scaler = scaler
        new_masters = masters(engine)
    elsewhere = 0
    for group_masters, pairs in zip(new_masters, kept, strict=True):
        for master, (old, state) in zip(group_masters, pairs, strict=True):
            if master.data_ptr() != old.data_ptr():
                master.data.copy_(old.data)
                elsewhere += 1
            if state:
                inner.state[master] = state
    if elsewhere and engine.global_rank == 0:
        logger.warning(
            "freezing copied %d fp32 masters, as DeepSpeed %s put them elsewhere than expected: the values are right, "
            "but memory rose by their size for a moment. Tested with DeepSpeed %s.",
            elsewhere,
            deepspeed.__version__,
            TESTED_DEEPSPEED,
        )


def _drop_groups_of_unsharded(wrapper: Any, survivors: Sequence[int]) -> None:
    """Stage 0's wrapper keeps nothing of a group but these three lists. Its constructor would be the most expensive of
    all: it makes gradients of every weight and of every master, and steps on them."""
    wrapper.fp16_groups = [wrapper.fp16_groups[index] for index in survivors]
    wrapper.fp32_groups = [wrapper.fp32_groups[index] for index in survivors]
    wrapper.overflow_checker.params = [parameter for group in wrapper.fp16_groups for parameter in group]


def _destroy_wrapper(engine: deepspeed.DeepSpeedEngine) -> None:
    """Remove a ZeRO wrapper's hooks, every reference to it and all that it holds.

    Its own hooks are cycles that keep it alive until Python's collector comes by; emptied, it keeps no tensor alive.
    ZeRO-1/2's `destroy` would unpin offloaded masters and their gradients, which go on to be used, so they are taken
    from it first. ZeRO-3's unpins gradients only, and its constructor makes those anew.

    ZeRO-3 leaves ``pre_bwd_fn``, ``post_bwd_fn`` and a counter on each module, closures over the old parameter
    coordinator that the next wrapper would reuse. They hide the backward pass from the new prefetch trace, after which
    every parameter is gathered twice per step. ``FWD_MODULE_STACK`` is a global list that each ZeRO-3 wrapper pushes
    the model onto."""
    wrapper = engine.optimizer
    wrapper.single_partition_of_fp32_groups = []
    wrapper.destroy()
    if hasattr(wrapper, "parameter_offload"):
        for module in engine.module.modules():
            for attribute in ("pre_bwd_fn", "post_bwd_fn", "applied_pre_backward_ref_cnt"):
                module.__dict__.pop(attribute, None)
        stack = parameter_offload.FWD_MODULE_STACK
        stack[:] = [module for module in stack if module is not engine.module]
    engine.optimizer = None
    vars(wrapper).clear()


def _construct_wrapper(engine: deepspeed.DeepSpeedEngine, old_masters: Masters) -> None:
    """Let DeepSpeed wrap the inner optimizer anew, as at the start, but on the masters that exist.

    The constructors would make all masters, and ZeRO-1/2's then a gradient for each, before anybody could copy the old
    ones in: peak memory would grow by 8 bytes per trainable parameter, divided over the ranks. So they are helped in
    five places, on which no result depends:

    - ZeRO-1/2 puts each new master into its group's dict: `_Heir` sees it.
    - ZeRO-1/2's ``initialize_optimizer_states`` makes gradients, and keeps them only where they are offloaded, which
      the heirs have inherited.
    - ZeRO-3 calls ``_create_momentum_buffer``, which is for the Muon optimizer, after each new master.
    - ZeRO-3's ``defragment`` copies all weights through host memory into one buffer, in which they lie already.
    - ZeRO-3 makes a text of all its arguments that is never printed. The values of the parameters in it take longer
      than all the rest: `_Unprinted` has none."""
    inner = inner_optimizer(engine)
    flat = iter([master for group in old_masters for master in group])
    group_dicts = inner.param_groups[:]
    inner.param_groups[:] = [_Heir(group, masters) for group, masters in zip(group_dicts, old_masters, strict=True)]
    with (
        _replaced(stage_1_and_2.DeepSpeedZeroOptimizer, "initialize_optimizer_states", lambda wrapper: None),
        _replaced(
            stage3.DeepSpeedZeroOptimizer_Stage3,
            "_create_momentum_buffer",
            lambda wrapper, _, sub_group, __: _take_over(wrapper.fp32_partitioned_groups_flat[sub_group], next(flat)),
        ),
        _replaced(stage3, "defragment", _one_buffer),
        _replaced(engine, "param_names", _Unprinted(engine.param_names)),
    ):
        engine._configure_optimizer(inner, None)
    if engine._support_torch_style_backward:  # DeepSpeedEngine.__init__ registers this, _configure_optimizer does not
        engine.optimizer.register_grad_acc_post_hook(engine._backward_post_hook)
    leave_gradients_of_one_rank(engine)
    for group_dict, heir in zip(group_dicts, inner.param_groups, strict=True):
        group_dict.update(heir)
    inner.param_groups[:] = group_dicts


class _Heir(dict[str, Any]):
    """A group of the inner optimizer into which a constructor puts the group's new master."""

    def __init__(self, group: dict[str, Any], old_masters: Sequence[torch.Tensor]):
        super().__init__(group)
        self._old_masters = old_masters

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if key == "params":
            for new, old in zip(value, self._old_masters, strict=False):  # ZeRO-3 puts in an empty list
                _take_over(new, old)


class _Unprinted(dict[torch.Tensor, str]):
    """Names by parameter, of which printing shows the count."""

    def __repr__(self) -> str:
        return f"{len(self)} parameters"


def _take_over(new: torch.Tensor, old: torch.Tensor) -> None:
    """Give `new` the memory of `old`, and with it the values; what `new` had is free again. An offloaded
    master has a gradient, which goes along: for good at ZeRO-1/2, until the constructor makes another at ZeRO-3."""
    new.data, new.grad, old.grad = old.data, old.grad, None


def _one_buffer(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stand-in for ZeRO-3's ``defragment``: the one flat tensor of which `tensors` are consecutive parts.

    They lie in the buffer that the first wrapper made for the whole model, in the order of the groups. Frozen units are
    a prefix of it; their shards stay where they are, as they are still needed. Two storages may happen to follow one
    another in memory, and a tensor over both would outlive the second."""
    first, offset = tensors[0], 0
    storage = first.untyped_storage().data_ptr()
    for tensor in tensors:
        follows = tensor.data_ptr() == first.data_ptr() + offset * first.element_size()
        if not follows or tensor.untyped_storage().data_ptr() != storage:
            return defragment(tensors)
        offset += tensor.numel()
    return torch.as_strided(first, (offset,), (1,))


@contextmanager
def _replaced(owner: Any, name: str, stand_in: Any) -> Iterator[None]:
    """Have `owner.name` be `stand_in` for a while."""
    original = getattr(owner, name)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        setattr(owner, name, original)


def detach_frozen(parameter: Any) -> None:
    """Clear what ties a frozen parameter to a destroyed wrapper.

    Its data stays a view into a flat buffer: at ZeRO-1/2 into that of its group, which holds nothing else and goes when
    these views go; at ZeRO-3 into that of the model, which surviving and frozen shards share."""
    parameter.grad = None
    for attribute in ("_hp_mapping", "_hp_grad", "grad_accum", "_zero_optimizer"):
        if hasattr(parameter, attribute):
            setattr(parameter, attribute, None)
