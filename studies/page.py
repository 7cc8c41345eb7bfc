"""Pages with results: their prose is written by hand, their tables between two marks by the study that they tell of."""

import datetime
import shlex
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import describe_machine
from trainer.errors import BadInput
from trainer.files import write_text

END = "<!-- end of the tables -->"


def begin(module: str) -> str:
    """The mark above the tables that `python -m module` writes."""
    return f"<!-- tables: written by python -m {module} -->"


def command_line(module: str, words: Sequence[str]) -> str:
    return shlex.join(["python", "-m", module, *words])


def dated(command: str, runs: int, judged: int) -> str:
    """How and where the tables came to be."""
    today = datetime.datetime.now(datetime.UTC).date()
    return f"`{command}`, {today}: {runs} runs, {judged} checkpoints judged.\n\n{describe_machine()}\n"


def put_tables(page: Path, text: str, module: str) -> None:
    """Replace what is between the marks, or make a page of the tables alone. Raises `BadInput` for a page without
    them."""
    mark = begin(module)
    if not page.is_file():
        write_text(page, f"{mark}\n\n{text}\n{END}\n")
        return
    before, found, rest = page.read_text(encoding="utf-8").partition(mark)
    _, end, after = rest.partition(END)
    if not (found and end):
        raise BadInput(f"{page}: has no place for the tables; put these two lines in: {mark} and {END}")
    write_text(page, f"{before}{mark}\n\n{text}\n{END}{after}")
