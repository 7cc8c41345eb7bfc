"""Joining the process group of all ranks, before the data loader or the engine asks for it."""

import os
from datetime import timedelta

import deepspeed
import torch.distributed

from trainer.engine.internals import give_world_group_timeout, skip_shared_memory_op


def join_process_group(*, timeout: timedelta = timedelta(minutes=30), init_method: str | None = None) -> None:
    """Start torch.distributed through DeepSpeed, with the accelerator's own backend; a no-op where it runs already.

    Reads RANK, WORLD_SIZE, LOCAL_RANK (and MASTER_ADDR, MASTER_PORT unless `init_method` says otherwise) from the
    environment, as launchers set them. A collective that waits longer than `timeout` aborts its rank, in DeepSpeed's
    own group too."""
    if torch.distributed.is_initialized():
        return
    skip_shared_memory_op()
    deepspeed.init_distributed(
        timeout=timeout,
        init_method=init_method,
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        auto_mpi_discovery=False,
        verbose=False,
    )
    give_world_group_timeout(timeout)
