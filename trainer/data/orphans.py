"""Worker processes end with the process that they work for, however it ended, and so do the commands they started."""

import multiprocessing
import os
import signal
import threading
from contextlib import suppress

# Ids of the process groups that this process started and that are to end with it. Being groups of their own, they get
# none of the signals that end a job; whoever adds one takes it out when it has ended.
PROCESS_GROUPS: set[int] = set()


def exit_with_parent() -> None:
    """Called in a worker process: ends it and its PROCESS_GROUPS as soon as its parent is gone, even by SIGKILL.

    Neither a process pool nor DataLoader sees to that when a server process forks the workers: they, the server and its
    pipe keep one another alive, waiting for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("not in a worker process")

    def wait_and_exit() -> None:
        parent.join()
        for group in list(PROCESS_GROUPS):
            end_group(group)
        os._exit(1)

    threading.Thread(target=wait_and_exit, daemon=True, name="exit-with-parent").start()


def end_group(group: int) -> None:
    """Kills every process of a group, if any is left."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
