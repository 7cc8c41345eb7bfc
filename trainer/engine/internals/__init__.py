"""What DeepSpeed keeps private, touched in this package alone. Tested with DeepSpeed 0.19.8 and torch 2.14.1.

Freezing on a live engine means giving `DeepSpeedEngine` a new optimizer wrapper over fewer parameter groups while the
engine, its counters and the model stay. DeepSpeed offers no such call, so each function below does one thing with a
private attribute and says which and why. When DeepSpeed moves one of them, tests/engine fails and this package changes.

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

from trainer.engine.internals.one_rank import leave_gradients_of_one_rank
from trainer.engine.internals.rebuild import detach_frozen, rebuild_wrapper, undo_constructor_step
from trainer.engine.internals.start import (
    TESTED_DEEPSPEED,
    give_world_group_timeout,
    skip_shared_memory_op,
    warn_if_untested,
)
from trainer.engine.internals.state import (
    Location,
    can_lower_loss_scale,
    inner_optimizer,
    locate,
    loss_scaler_state,
    masters,
    raise_no_error_at_lowest_scale,
    set_counters,
    set_loss_scaler_state,
    set_micro_batch,
    whole_weight,
)
from trainer.engine.internals.updates import step_if_finite

__all__ = [
    "TESTED_DEEPSPEED",
    "Location",
    "can_lower_loss_scale",
    "detach_frozen",
    "give_world_group_timeout",
    "inner_optimizer",
    "leave_gradients_of_one_rank",
    "locate",
    "loss_scaler_state",
    "masters",
    "raise_no_error_at_lowest_scale",
    "rebuild_wrapper",
    "set_counters",
    "set_loss_scaler_state",
    "set_micro_batch",
    "skip_shared_memory_op",
    "step_if_finite",
    "undo_constructor_step",
    "warn_if_untested",
    "whole_weight",
]
