"""On one rank there is nothing to reduce, which DeepSpeed does nevertheless."""

import deepspeed
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer


def leave_gradients_of_one_rank(engine: deepspeed.DeepSpeedEngine) -> None:
    """On one rank, have ZeRO-1 and 2 update from the gradients where autograd put them. To be called for every new
    wrapper; a no-op on more ranks and at other stages.

    DeepSpeed 0.19.8 copies each gradient into a bucket, divides it by one, sends it to the only rank, copies it onto
    itself and copies it again into a buffer of all gradients; bucket and buffer are allocated anew in every step. There
    is no switch. Its epilogue reads the gradients off the parameters, wherever they lie, so that a parameter's turn,
    ``reduce_independent_p_g_buckets_and_remove_grads``, may do nothing. Not so with an offloaded optimizer, nor where
    16-bit gradients add up in fp32: there the turn itself moves them to where they belong.

    Changes no bit, but that gradients are not rounded for a journey that they do not make: to a
    ``communication_data_type`` narrower than theirs, or by ``gradient_predivide_factor``."""
    wrapper = engine.optimizer
    if not isinstance(wrapper, DeepSpeedZeroOptimizer) or engine.dp_world_size > 1 or wrapper.cpu_offload:
        return
    if any(wrapper._use_compact_grad_partition_buffer(group) for group in range(len(wrapper.bit16_groups))):
        return
    wrapper.contiguous_gradients = False  # else a bucket is allocated, which nothing is put into
    wrapper.reduce_independent_p_g_buckets_and_remove_grads = lambda parameter, group: None
