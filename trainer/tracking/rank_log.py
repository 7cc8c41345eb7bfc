"""RUN/logs/rank_00000.log, one for each rank: what it said, what the libraries below it said, and its last words.

The console, which all ranks share, gets rank 0's own lines, and from every rank what a person has to know. Warnings of
DeepSpeed and of Python go to the files alone. On a machine that was cut off, its ranks' files are all that is left of
what they had to say.
"""

import contextlib
import logging
import os
import sys
import traceback
from logging.handlers import MemoryHandler
from pathlib import Path
from types import TracebackType

QUIET = ("DeepSpeed", "py.warnings")
"""Loggers of which the console gets errors only."""

_SAID = logging.getLogger("trainer.said")
_FORMAT = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")


def start_rank_log() -> None:
    """Gather from now on; `open_rank_log` says where to. Once in a process, after DeepSpeed's import."""
    root = logging.getLogger()
    if any(isinstance(handler, _Console) for handler in root.handlers):
        return
    _SAID.setLevel(logging.INFO)
    root.addHandler(_Console())
    root.addHandler(MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1))
    logging.captureWarnings(True)
    deepspeed = logging.getLogger("DeepSpeed")
    deepspeed.handlers.clear()  # its own writes to standard output
    deepspeed.propagate = True
    sys.excepthook = _note_and_print


def open_rank_log(folder: Path, rank: int, world_size: int, host: str) -> None:
    """Append to this rank's file in `folder`, which is there: what was gathered so far, and all that comes."""
    file = _File(folder / f"rank_{rank:05d}.log")
    file.setFormatter(_FORMAT)
    root = logging.getLogger()
    file.handle(_record(f"=== rank {rank} of {world_size} on {host}"))
    for handler in [h for h in root.handlers if isinstance(h, (MemoryHandler, _File))]:
        if isinstance(handler, MemoryHandler):
            handler.setTarget(file)
        root.removeHandler(handler)
        handler.close()
    root.addHandler(file)


def note(text: str) -> None:
    """For this rank's file."""
    _SAID.info(text)


def tell(text: str) -> None:
    """For standard output."""
    try:
        print(text, flush=True)
    except OSError:  # it went through ssh to a terminal that is gone; training need not
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def complain(text: str) -> None:
    """For standard error, and for this rank's file."""
    note(text)
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


class _Console(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or record.name not in QUIET:
            with contextlib.suppress(OSError):
                print(record.getMessage(), file=sys.stderr, flush=True)


class _File(logging.FileHandler):
    """What cannot be written is lost: a full disk is told of by the metrics, and ends no training."""

    def __init__(self, path: Path):
        super().__init__(path, delay=True)

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Errors of writing come here, those of opening the file to `emit`."""


def _record(text: str) -> logging.LogRecord:
    return logging.LogRecord(_SAID.name, logging.INFO, "", 0, text, None, None)


def _note_and_print(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    note("".join(traceback.format_exception(kind, error, where)))
    sys.__excepthook__(kind, error, where)
