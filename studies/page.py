"""The page with the results: its prose is written by hand, its tables between two marks by this program."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import describe_machine
from studies.contrast import main_section, others_section
from studies.results import Point
from trainer.errors import BadInput
from trainer.files import write_text

BEGIN, END = "<!-- tables: written by python -m studies.freezing -->", "<!-- end of the tables -->"


def tables(points: Sequence[Point], budgets: Sequence[int], unit_cost: int, command: str) -> str:
    """Markdown of all that is there, dated."""
    judged = f"{len({point.trial for point in points})} runs, {len(points)} checkpoints judged"
    today = datetime.datetime.now(datetime.UTC).date()
    parts = [f"`{command}`, {today}: {judged}.\n\n{describe_machine()}\n"]
    for budget in budgets:
        sections = [main_section(points, budget, unit_cost), others_section(points, budget, unit_cost)]
        parts += [section.markdown().replace("## ", "### ", 1) for section in sections if section.rows]
    return "\n".join(parts)


def put_tables(page: Path, text: str) -> None:
    """Replace what is between the marks, or make a page of the tables alone. Raises `BadInput` for a page without
    them."""
    if not page.is_file():
        write_text(page, f"{BEGIN}\n\n{text}\n{END}\n")
        return
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise BadInput(f"{page}: has no place for the tables; put these two lines in: {BEGIN} and {END}")
    write_text(page, f"{before}{BEGIN}\n\n{text}\n{END}{after}")
