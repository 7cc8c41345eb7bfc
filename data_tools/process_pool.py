"""Worker processes for conversion and checks: quick to start, and gone with the command however it ends."""

import multiprocessing
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from trainer.data.orphans import exit_with_parent
from trainer.errors import BadInput


@contextmanager
def process_pool(workers: int, module: str) -> Iterator[ProcessPoolExecutor]:
    """A pool whose tasks are functions of `module` (its dotted name). Tasks that have not begun when the block is left
    are dropped. Raises BadInput if a worker is killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])  # its imports take seconds, and each worker is a fork of that process
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise BadInput(
            "a worker was killed (out of memory? then lower --workers); run the command again to go on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    warnings.filterwarnings("ignore", module="PIL")  # on damaged EXIF, for one: nothing here reads EXIF
    exit_with_parent()
