"""What all commands share: bad input ends with one line on rank 0 and exit code 2, before any engine is built."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from trainer.data.urls import redact
from trainer.errors import BadInput
from trainer.ranks import RANK_NAMES
from trainer.tracking.rank_log import complain

BAD_INPUT = 2
PATIENCE_SECONDS = 10  # how long the other ranks leave rank 0 to speak for all


class ArgumentParser(argparse.ArgumentParser):
    """Tells a bad command line as every other bad input: once, in one line."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (--help shows all arguments)")


def run_command(main: Callable[[], int]) -> None:
    """Call `main` and exit with its code.

    Launchers kill all ranks as soon as one has failed. So the others wait for rank 0 to say what is wrong, once; one
    that is still alive after that alone has the trouble (a disk missing on its machine, say) and says so itself."""
    try:
        code = main()
    except BadInput as error:
        rank = next(filter(None, map(os.environ.get, RANK_NAMES)), "0")
        if rank != "0":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # training would only take note of it
            time.sleep(PATIENCE_SECONDS)
        message = redact(str(error))  # it may quote an override or a path that is a URL with a password
        complain(f"error: {message}" if rank == "0" else f"error on rank {rank}: {message}")
        code = BAD_INPUT
    sys.exit(code)
