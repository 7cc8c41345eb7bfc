"""Worker processes end with the process that they work for, however it ended."""

import multiprocessing
import os
import threading


def exit_with_parent() -> None:
    """Called in a worker process: ends it as soon as its parent is gone, even by SIGKILL.

    Neither a process pool nor DataLoader sees to that when a server process forks the workers: they, the server and its
    pipe keep one another alive, waiting for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("not in a worker process")

    def wait_and_exit() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_and_exit, daemon=True, name="exit-with-parent").start()
