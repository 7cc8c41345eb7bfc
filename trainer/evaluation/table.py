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
    return "\n".join([lines[0], *marked, *_at_the_edge(result["results"], best)])


def _at_the_edge(results: list[dict[str, Any]], best: dict[str, Any]) -> list[str]:
    """Where the sweep of rates should go on."""
    rates = {row["rate"] for row in results if "rate" in row}
    for which, edge in (("largest", max), ("smallest", min)):
        if len(rates) > 1 and best["rate"] == edge(rates):
            return [f"the best rate is the {which} of the sweep: add {'larger' if edge is max else 'smaller'} ones"]
    return []


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
