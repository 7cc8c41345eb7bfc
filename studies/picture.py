"""Accuracy against cost, drawn."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.image_sets import ImageSet
from studies.results import MEASURES, Point
from studies.trials import POLICIES

_DPI = 120


def draw(found: Mapping[ImageSet, Sequence[Point]], unit_cost: int, path: Path) -> None:
    """A row for each set of images, a panel for each measure that was taken of it: one line for each policy through the
    means of its runs' ends, one for each length, seeds as dots, and the unfrozen runs' early-stopping curves dashed,
    without the networks that they began with."""
    points_of_all = [point for points in found.values() for point in points]
    taken = {m: name for m, name in MEASURES.items() if any(p.accuracy(m) is not None for p in points_of_all)}
    figure = Figure(figsize=(4.2 * len(taken) + 2, 4.4 * len(found)), layout="constrained")
    rows = figure.subplots(len(found), len(taken), squeeze=False)
    labelled: dict[str, Artist] = {}
    for row, (image_set, points) in zip(rows, found.items(), strict=True):
        for panel, (measure, name) in zip(row, taken.items(), strict=True):
            if all(point.accuracy(measure) is None for point in points):
                panel.set_axis_off()
                continue
            _draw_panel(panel, points, measure, unit_cost)
            panel.set_title(image_set.title, fontsize=10)
            panel.set_xlabel("cost in matmul FLOPs")
            panel.set_ylabel(f"{name}, % of held-out images")
            panel.spines[["top", "right"]].set_visible(False)
            handles, labels = panel.get_legend_handles_labels()
            labelled = dict(zip(labels, handles, strict=True)) | labelled
    figure.legend(labelled.values(), labelled.keys(), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=_DPI)


def _draw_panel(panel: Axes, points: Sequence[Point], measure: str, unit_cost: int) -> None:
    for number, policy in enumerate(POLICIES):
        colour = colormaps["tab20"](number - 1) if number else "black"
        ends: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for point in points:
            accuracy = point.accuracy(measure)
            if point.trial.policy == policy and point.is_last and accuracy is not None:
                ends[point.trial.steps].append((point.cost / unit_cost, 100 * accuracy))
        if ends:
            middles = [tuple(map(mean, zip(*ends[steps], strict=True))) for steps in sorted(ends)]
            panel.plot(*zip(*middles, strict=True), "-o", color=colour, ms=5, label=policy)
            seeds = [end for of_length in ends.values() for end in of_length]
            panel.plot(*zip(*seeds, strict=True), "o", color=colour, ms=3, alpha=0.5)
    curves = defaultdict(list)
    for point in points:
        if point.trial.has_curve and point.steps:
            curves[point.trial.steps].append(point)
    label: str | None = "none, stopped early"
    for curve in curves.values():
        stops = _by_cost(curve, measure)
        if len(stops) > 1:
            costs = [cost / unit_cost for cost in stops]
            panel.plot(costs, [mean(values) for values in stops.values()], "--.", color="grey", lw=1, ms=4, label=label)
            label = None


def _by_cost(points: Sequence[Point], measure: str) -> dict[int, list[float]]:
    """Cost → accuracies of all seeds, in percent, by rising cost."""
    found = defaultdict(list)
    for point in sorted(points, key=lambda point: point.cost):
        accuracy = point.accuracy(measure)
        if accuracy is not None:
            found[point.cost].append(100 * accuracy)
    return found
