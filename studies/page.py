"""Pages with results: their prose is written by hand, their tables between two marks by the study that they tell of."""

import datetime
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.machine import describe_machine
from studies.contrast import main_sections, others_section
from studies.image_sets import ImageSet
from studies.results import Point
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


def tables(found: Mapping[ImageSet, Sequence[Point]], unit_cost: int, command: str, *, quick: bool = False) -> str:
    """Markdown of all that is there, dated."""
    runs = sum(len({point.trial for point in of_set}) for of_set in found.values())
    parts = [dated(command, runs, sum(map(len, found.values())))]
    for image_set, of_set in found.items():
        parts.append(f"### {image_set.title}\n")
        for budget in image_set.budgets(quick=quick):
            sections = main_sections(of_set, budget, unit_cost)
            if budget == image_set.budgets(quick=quick)[0] and not image_set.main_only:
                sections.append(others_section(of_set, budget, unit_cost))
            parts += [section.markdown().replace("## ", "#### ", 1) for section in sections if section.rows]
    return "\n".join(parts)


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
