"""The decoding processes: how they are started, and when they end."""

import multiprocessing
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType

import torch
from torch.utils.data import DataLoader, IterableDataset

from trainer.data.batches import Failure, Share
from trainer.data.orphans import exit_with_parent

# How long a worker that was told to stop goes on serving the training process, which may be about to save.
GRACE_SECONDS = 120


def shares_of_workers(dataset: IterableDataset, num_workers: int, prefetch: int) -> Iterator[Share | Failure]:
    """Starts the workers and yields their shares in turn, `prefetch` of each prepared ahead; with 0 workers the calling
    process does the work itself."""
    if num_workers == 0:
        return iter(dataset)
    _start_resource_tracker()
    # A server process that forks the workers, rather than a fork of this process: by now it runs threads of the
    # process group and of the accelerator, whose locks a fork would copy in whatever state they are. The server
    # imports once what the workers need.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.data.worker_server"])
    return iter(
        DataLoader(
            dataset,
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=prefetch,
            multiprocessing_context=context,
            worker_init_fn=prepare_worker,
            generator=torch.Generator(),  # for seeds that nobody uses; the global generator is the model's
        )
    )


def prepare_worker(worker: int) -> None:
    """Runs first in each worker process: decides when it ends.

    Not at its first SIGTERM, which is usually meant for the training process and went to all processes of the job: it
    then serves on for GRACE_SECONDS. The second ends it at once; DataLoader sends as many to a worker that it gives up.
    And it does not outlive the training process."""

    def first_sigterm(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(GRACE_SECONDS)

    signal.signal(signal.SIGTERM, first_sigterm)
    exit_with_parent()


def _start_resource_tracker() -> None:
    """Python's tracker of semaphores ignores SIGINT and SIGTERM, but a SIGUSR1 to all processes of the job would end
    it, with warnings and tracebacks later on. Started while that signal is blocked, it keeps it blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
