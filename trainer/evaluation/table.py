"""The printed result of an evaluation."""

from typing import Any


def describe(result: dict[str, Any]) -> str:
    """A line for each figure, the best of all marked."""
    names = [name for name in result["results"][0] if name not in ("top1", "top5")]
    best = max(result["results"], key=lambda row: row["top1"])
    rows = [
        [*(_cell(row[name]) for name in names), f"{row['top1']:.2%}", f"{row['top5']:.2%}"] for row in result["results"]
    ]
    header = [*names, "top-1", "top-5"]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    marked = [
        line + ("  <- best" if row is best else "") for line, row in zip(lines[1:], result["results"], strict=True)
    ]
    return "\n".join([lines[0], *marked])


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
