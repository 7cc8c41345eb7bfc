"""Points of equal cost side by side: what the study's tables say."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from benchmarks.tables import Section
from studies.results import MEASURES, Point, mean_and_spread
from studies.trials import MAIN_FROZEN, shortened

Rival = tuple[str, int, int]
"""Policy, steps of its schedule, steps taken."""


def main_section(points: Sequence[Point], budget: int, unit_cost: int) -> Section:
    """The main contrast of one budget; accuracies in percent, costs in units of `unit_cost`."""
    rivals: dict[Rival, str] = {
        ("none", budget, budget): "unfrozen, to the end",
        ("none", budget, shortened(budget)): "unfrozen, stopped early",
        ("none", shortened(budget), shortened(budget)): "unfrozen, shorter schedule",
        **{(policy, budget, budget): policy for policy in MAIN_FROZEN},
    }
    found = _by_rival(points)
    rows = [[name, *_figures(found[rival], unit_cost)] for rival, name in rivals.items() if rival in found]
    frozen = [(policy, budget, budget) for policy in MAIN_FROZEN]
    others = [rival for rival in rivals if rival[0] == "none"]
    remarks = [
        f"{rivals[a]} less {rivals[b]}, seed by seed: {_difference(found[a], found[b])}."
        for a in frozen
        for b in others
        if a in found and b in found and _common_seeds(found[a], found[b])
    ]
    return Section(
        f"{budget} steps",
        "Mean and standard deviation over the seeds, in percent of the held-out images; cost in matmul FLOPs.",
        ["run", "seeds", "cost", *MEASURES.values()],
        rows,
        remarks,
    )


def others_section(points: Sequence[Point], budget: int, unit_cost: int) -> Section:
    """Every policy's run with seed 0 beside an unfrozen run of the same seed stopped at the same cost."""
    unfrozen = [p for p in points if p.trial.policy == "none" and p.trial.steps == budget and p.trial.seed == 0]
    rows = []
    for point in points:
        if (point.trial.steps, point.trial.seed) == (budget, 0) and point.is_last and point.trial.policy != "none":
            stopped = {measure: at_cost(unfrozen, measure, point.cost) for measure in MEASURES}
            row = [point.trial.policy, f"{point.cost / unit_cost:.3f}"]
            for measure in MEASURES:
                accuracy, rival = getattr(point.accuracy, measure), stopped[measure]
                row += [f"{accuracy:.2%}", "–" if rival is None else f"{100 * (accuracy - rival):+.2f}"]
            rows.append(row)
    header = [text for name in MEASURES.values() for text in (name, "less stopped early")]
    return Section(
        f"All policies, {budget} steps, one seed",
        "Beside each accuracy, in points, what it is above the unfrozen run when that had cost as much (between two of "
        "its checkpoints: on the straight line). One seed cannot tell such differences from chance.",
        ["policy", "cost", *header],
        rows,
    )


def at_cost(curve: Sequence[Point], measure: str, cost: int) -> float | None:
    """Accuracy of a run when it had cost so much, between its checkpoints on the straight line; None beyond them."""
    ordered = sorted(curve, key=lambda point: point.cost)
    for before, after in pairwise(ordered):
        if before.cost <= cost <= after.cost:
            share = (cost - before.cost) / (after.cost - before.cost)
            a, b = (float(getattr(point.accuracy, measure)) for point in (before, after))
            return a + share * (b - a)
    return None


def _by_rival(points: Sequence[Point]) -> dict[Rival, list[Point]]:
    found = defaultdict(list)
    for point in points:
        found[point.trial.policy, point.trial.steps, point.steps].append(point)
    return found


def _figures(points: Sequence[Point], unit_cost: int) -> list[str]:
    figures = [str(len(points)), f"{points[0].cost / unit_cost:.3f}"]
    return figures + [_percent([getattr(p.accuracy, measure) for p in points]) for measure in MEASURES]


def _percent(shares: list[float]) -> str:
    middle, spread = mean_and_spread([100 * share for share in shares])
    return f"{middle:.2f}" if spread is None else f"{middle:.2f} ± {spread:.2f}"


def _common_seeds(a: Sequence[Point], b: Sequence[Point]) -> list[int]:
    return sorted({p.trial.seed for p in a} & {p.trial.seed for p in b})


def _difference(a: Sequence[Point], b: Sequence[Point]) -> str:
    texts = []
    for measure, name in MEASURES.items():
        one, other = ({p.trial.seed: getattr(p.accuracy, measure) for p in points} for points in (a, b))
        differences = [100 * (one[seed] - other[seed]) for seed in _common_seeds(a, b)]
        middle, spread = mean_and_spread(differences)
        texts.append(f"{name} {middle:+.2f}" + ("" if spread is None else f" ± {spread:.2f}"))
    return ", ".join(texts) + " points"
