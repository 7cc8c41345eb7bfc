"""Accuracy on the new images against cost, drawn."""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from studies.continuations import WAYS
from studies.continued_results import START, TAKEN, Found, by_budget, start_mean
from studies.continued_sets import ContinuedSet

_DPI = 120


def draw(found: Mapping[ContinuedSet, Found], path: Path) -> None:
    """A row for each pair of sets of images, a panel for each measure: a line for each way through the means of its
    runs, seeds as dots, and the weights that all begin with as a dotted line."""
    figure = Figure(figsize=(4.6 * len(TAKEN) + 2.5, 4.4 * len(found)), layout="constrained")
    rows = figure.subplots(len(found), len(TAKEN), squeeze=False)
    for row, (images, of_set) in zip(rows, found.items(), strict=True):
        for panel, (measure, name) in zip(row, TAKEN.items(), strict=True):
            _draw_panel(panel, of_set, measure)
            panel.set_title(images.title, fontsize=9)
            panel.set_xlabel("cost in matmul FLOPs, as unfrozen steps")
            panel.set_ylabel(f"{name}, % of held-out new images")
            panel.spines[["top", "right"]].set_visible(False)
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=_DPI)


def _draw_panel(panel: Axes, found: Found, measure: str) -> None:
    budgets = sorted({outcome.run.budget for outcome in found.outcomes})
    panel.set_xscale("log")
    panel.set_xticks(budgets, labels=map(str, budgets))
    panel.xaxis.set_minor_locator(NullLocator())
    if found.start:
        panel.axhline(start_mean(found, measure), color="grey", lw=1, ls=":", label=START)
    for number, way in enumerate(WAYS):
        values = by_budget(found, way, measure)
        colour = colormaps["tab10"](number)
        panel.plot(list(values), [mean(of_seeds) for of_seeds in values.values()], "-o", color=colour, ms=5, label=way)
        seeds = [(budget, value) for budget, of_seeds in values.items() for value in of_seeds]
        panel.plot([b for b, _ in seeds], [v for _, v in seeds], "o", color=colour, ms=3, alpha=0.5)
