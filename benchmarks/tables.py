"""Markdown tables and the sections that hold them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A heading, what was measured and how, the table, and what it says."""

    title: str
    method: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    remarks: Sequence[str] = ()

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", self.method, "", *_table(self.header, self.rows)]
        for remark in self.remarks:
            lines += ["", remark]
        return "\n".join(lines) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Padded, so that it reads as well on a terminal: the first column to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        name, *figures = cells
        padded = [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(figures, widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = [f"{'-' * widths[0]}-", *(f"{'-' * width}:" for width in widths[1:])]
    return [line(header), f"|-{'|-'.join(rule)}|", *map(line, rows)]
