"""The page with the results: its prose is written by hand, its tables between two marks by this program."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.machine import describe_machine
from studies.contrast import main_sections, others_section
from studies.image_sets import ImageSet
from studies.results import Point
from trainer.errors import BadInput
from trainer.files import write_text

BEGIN, END = "<!-- tables: written by python -m studies.freezing -->", "<!-- end of the tables -->"


def tables(found: Mapping[ImageSet, Sequence[Point]], unit_cost: int, command: str, *, quick: bool = False) -> str:
    """Markdown of all that is there, dated."""
    points = [point for of_set in found.values() for point in of_set]
    runs = sum(len({point.trial for point in of_set}) for of_set in found.values())
    today = datetime.datetime.now(datetime.UTC).date()
    parts = [f"`{command}`, {today}: {runs} runs, {len(points)} checkpoints judged.\n\n{describe_machine()}\n"]
    for image_set, of_set in found.items():
        parts.append(f"### {image_set.title}\n")
        for budget in image_set.budgets(quick=quick):
            sections = main_sections(of_set, budget, unit_cost)
            if budget == image_set.budgets(quick=quick)[0] and not image_set.main_only:
                sections.append(others_section(of_set, budget, unit_cost))
            parts += [section.markdown().replace("## ", "#### ", 1) for section in sections if section.rows]
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
