"""Before and while DeepSpeed starts: what it has no switch for."""

import logging
from datetime import timedelta

import deepspeed
import torch
from deepspeed.utils import groups as process_groups

TESTED_DEEPSPEED = "0.19.8"

logger = logging.getLogger(__name__)


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


def give_world_group_timeout(timeout: timedelta) -> None:
    """Make the process group that DeepSpeed reduces gradients in, with `timeout`.

    DeepSpeed would make this clone of the world group itself, and torch would give it a timeout of its own: 10 minutes
    on NCCL, whatever `init_process_group` was told."""
    process_groups._WORLD_GROUP = torch.distributed.new_group(timeout=timeout)
