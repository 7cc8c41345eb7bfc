"""The folder that a command writes to: there, writable, and nobody else's for as long as that takes."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import BadInput


@contextmanager
def sole_writer(output: Path, mend: str) -> Iterator[None]:
    """Makes the directory, and keeps a second command out of it: splits share files there.

    Raises BadInput for whatever the operating system has against writing there; `mend` says what to do then."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        directory = os.open(output, os.O_RDONLY)
        try:
            _lock(directory, output)
            yield
        finally:
            os.close(directory)
    except OSError as error:
        raise BadInput(f"cannot write to {output}: {error.strerror or error}; {mend}") from error


def _lock(directory: int, output: Path) -> None:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BadInput(
            f"another conversion or index is writing to {output}: wait for it, or choose another --output"
        ) from error
    except OSError:
        pass  # some network file systems lock no directories
