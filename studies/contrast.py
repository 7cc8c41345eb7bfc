"""Points of equal cost side by side: what the study's tables say."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

from benchmarks.tables import Section
from studies.cost import flops
from studies.results import MEASURES, Point, mean_and_spread
from studies.trials import CONTRASTED, POLICIES, Trial, shortened

_SECONDS = "seconds"


@dataclass(frozen=True)
class Contender:
    """`cost`: mean over the seeds, which differ where runs chose when to freeze. `by_seed`: for each seed, its
    accuracy by measure and its seconds; None where nobody measured it."""

    name: str
    cost: int
    by_seed: Mapping[int, Mapping[str, float | None]]

    def values(self, measure: str, seeds: Sequence[int] | None = None) -> list[float]:
        """Of these seeds, all unless given, that have one; by rising seed."""
        found = [self.by_seed[seed][measure] for seed in sorted(self.by_seed) if seeds is None or seed in seeds]
        return [value for value in found if value is not None]

    def seeds(self, measure: str) -> set[int]:
        return {seed for seed, values in self.by_seed.items() if values[measure] is not None}


def contenders(points: Sequence[Point], budget: int) -> dict[str, list[Contender]]:
    """Each policy of the main contrast that was run, with those of equal cost that do not freeze: stopped early
    (between two checkpoints: on the straight line) and with a shorter schedule. Under `none` the unfrozen run to its
    end."""
    found = {"none": [_ended(points, "unfrozen, to the end", "none", budget)]}
    for policy in CONTRASTED:
        steps = shortened(policy, budget)
        share = f"{steps / budget:.3f}"
        rivals = [
            _stopped(points, f"unfrozen, stopped at {share}", budget, steps),
            _ended(points, f"unfrozen, schedule of {share}", "none", steps),
        ]
        frozen = _ended(points, policy, policy, budget)
        found[policy] = [frozen, *rivals] if frozen.by_seed else []
    return {policy: [one for one in many if one.by_seed] for policy, many in found.items()}


def main_sections(points: Sequence[Point], budget: int, unit_cost: int) -> list[Section]:
    """The main contrast of one budget; accuracies in percent, costs in units of `unit_cost`."""
    found = contenders(points, budget)
    once = {one.name: one for many in found.values() for one in many} | {"untrained": _untrained(points, budget)}
    whole = found["none"][0].values(_SECONDS) if found["none"] else []
    rows = [
        [
            one.name,
            str(len(one.by_seed)),
            f"{one.cost / unit_cost:.3f}",
            _ratio(one.values(_SECONDS), whole),
            *(percent(one.values(measure)) for measure in MEASURES),
        ]
        for one in sorted(once.values(), key=lambda one: (-one.cost, one.name))
        if one.by_seed
    ]
    contrast = Section(
        f"{budget} steps",
        "Mean and standard deviation over the seeds, in percent of the held-out images. *Cost*: matmul FLOPs over "
        "those of the unfrozen run of the first budget. *Seconds*: wall time of the steps over the unfrozen run's.",
        ["run", "seeds", "cost", "seconds", *MEASURES.values()],
        rows,
    )
    differences = [
        [f"{frozen.name} less {rival.name}", *(difference(frozen, rival, measure) for measure in MEASURES)]
        for policy, (frozen, *rivals) in ((policy, many) for policy, many in found.items() if many)
        if policy != "none"
        for rival in [*rivals, *found["none"]]
    ]
    seed_by_seed = Section(
        f"{budget} steps, seed by seed",
        "Points by which a frozen run is above an unfrozen one of the same seed: mean and standard deviation.",
        ["difference", *MEASURES.values()],
        differences,
    )
    return [section for section in (contrast, seed_by_seed) if section.rows]


def others_section(points: Sequence[Point], budget: int, unit_cost: int) -> Section:
    """Every policy beside the unfrozen runs of the same seeds stopped at the same cost."""
    rows = []
    for policy in POLICIES:
        ended = _reached(points, policy, budget, budget)
        if ended and policy != "none":
            one = _contender(policy, ended)
            stopped = _stopped_at(points, "stopped", budget, {p.trial.seed: p.cost for p in ended})
            row = [policy, str(len(one.by_seed)), f"{one.cost / unit_cost:.3f}"]
            for measure in MEASURES:
                row += [percent(one.values(measure)), difference(one, stopped, measure)]
            rows.append(row)
    return Section(
        f"All policies, {budget} steps",
        "Beside each accuracy, in points, what it is above the unfrozen run of the same seed when that had cost as "
        "much (between two of its checkpoints: on the straight line); mean and standard deviation over the seeds. One "
        "seed cannot tell such differences from chance.",
        ["policy", "seeds", "cost", *(text for name in MEASURES.values() for text in (name, "less stopped early"))],
        rows,
    )


def at_cost(curve: Sequence[Point], value: Callable[[Point], float | None], cost: int) -> float | None:
    """A value of a run when it had cost so much, between the checkpoints that have one on the straight line; None
    beyond them."""
    known = [(point.cost, found) for point in curve if point.steps and (found := value(point)) is not None]
    for (before, low), (after, high) in pairwise(sorted(known)):
        if before <= cost <= after:
            return low + (cost - before) / (after - before) * (high - low)
    return None


def _ended(points: Sequence[Point], name: str, policy: str, steps: int) -> Contender:
    return _contender(name, _reached(points, policy, steps, steps))


def _untrained(points: Sequence[Point], budget: int) -> Contender:
    return _contender("untrained", _reached(points, "none", budget, 0))


def _reached(points: Sequence[Point], policy: str, steps: int, step: int) -> list[Point]:
    """The runs of so many steps, as they were at one of them."""
    return [p for p in points if (p.trial.policy, p.trial.steps, p.steps) == (policy, steps, step)]


def _contender(name: str, points: Sequence[Point]) -> Contender:
    by_seed = {p.trial.seed: {measure: _of(measure)(p) for measure in (*MEASURES, _SECONDS)} for p in points}
    return Contender(name, round(mean(p.cost for p in points)) if points else 0, by_seed)


def _stopped(points: Sequence[Point], name: str, budget: int, steps: int) -> Contender:
    cost = flops(Trial("none", steps, 0, quick=points[0].trial.quick)) if points else 0
    seeds = {p.trial.seed for p in points if (p.trial.policy, p.trial.steps) == ("none", budget)}
    return _stopped_at(points, name, budget, dict.fromkeys(seeds, cost))


def _stopped_at(points: Sequence[Point], name: str, budget: int, costs: Mapping[int, int]) -> Contender:
    """The unfrozen runs of that budget when they had cost so much, by seed."""
    by_seed = {}
    for seed, cost in costs.items():
        curve = _curve(points, budget, seed)
        values = {measure: at_cost(curve, _of(measure), cost) for measure in (*MEASURES, _SECONDS)}
        if any(value is not None for value in values.values()):
            by_seed[seed] = values
    return Contender(name, round(mean(costs.values())) if costs else 0, by_seed)


def _curve(points: Sequence[Point], budget: int, seed: int) -> list[Point]:
    return [p for p in points if (p.trial.policy, p.trial.steps, p.trial.seed) == ("none", budget, seed)]


def _of(measure: str) -> Callable[[Point], float | None]:
    return lambda point: getattr(point.judged, measure)


def _ratio(values: list[float], whole: list[float]) -> str:
    return f"{mean_and_spread(values)[0] / mean_and_spread(whole)[0]:.3f}" if values and whole else "–"


def percent(shares: list[float], sign: str = "") -> str:
    """Mean and, of more than one, standard deviation."""
    if not shares:
        return "–"
    middle, spread = mean_and_spread([100 * share for share in shares])
    return f"{middle:{sign}.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def difference(one: Contender, other: Contender, measure: str) -> str:
    """What `one` is above `other`, in points, seed by seed; of the seeds that both have."""
    seeds = sorted(one.seeds(measure) & other.seeds(measure))
    pairs = zip(one.values(measure, seeds), other.values(measure, seeds), strict=True)
    return percent([a - b for a, b in pairs], sign="+")
