"""What was found of runs that went on: accuracies on the new images by way, budget and seed, and their tables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from benchmarks.tables import Section
from studies.continuations import RIVALS, WAYS, Continuation, trained
from studies.contrast import Contender, difference, percent
from studies.results import MEASURES, Judged, read_judged

TAKEN = {measure: MEASURES[measure] for measure in ("knn", "linear")}
START = "the weights that all begin with"


@dataclass(frozen=True)
class Outcome:
    """A continuation and how good its last checkpoint is, on the new images."""

    run: Continuation
    judged: Judged


@dataclass(frozen=True)
class Found:
    """Of one pair of sets of images. `start`: by seed, the trained weights on the new images."""

    start: dict[int, Judged]
    outcomes: tuple[Outcome, ...]


def read_found(folder: Path, runs: Sequence[Continuation]) -> Found:
    """All of it that was judged."""
    bases = dict.fromkeys(trained(run.seed, quick=run.quick) for run in runs)
    start = {base.seed: judged for base in bases for judged in read_judged(folder, base).values()}
    outcomes = (Outcome(run, judged) for run in runs for judged in read_judged(folder, run).values())
    return Found(start, tuple(outcomes))


def sections(found: Found) -> list[Section]:
    """Accuracies in percent; then, seed by seed, by how many points frozen ones are above unfrozen ones."""
    rows = [[START, "–", "0", str(len(found.start)), *_percents(found.start)]] if found.start else []
    differences = []
    for budget in sorted({outcome.run.budget for outcome in found.outcomes}):
        by_way = {way: _of(found, way, budget) for way in WAYS}
        for way, outcomes in by_way.items():
            if outcomes:
                one = outcomes[0].run
                judged = {outcome.run.seed: outcome.judged for outcome in outcomes}
                rows.append([way, str(budget), str(one.steps), str(len(judged)), *_percents(judged)])
                if one.frozen_units:
                    differences += [
                        [f"{way} less {rival}", str(budget), *_differences(outcomes, by_way[rival])]
                        for rival in RIVALS
                        if by_way[rival]
                    ]
    accuracies = Section(
        "Accuracy",
        "Mean and standard deviation over the seeds, in percent of the held-out new images. *Budget*: the cost in "
        "matmul FLOPs, in steps of an unfrozen run; *steps*: how many it buys.",
        ["run", "budget", "steps", "seeds", *TAKEN.values()],
        rows,
    )
    seed_by_seed = Section(
        "Seed by seed",
        "Points by which a frozen run is above an unfrozen one of the same seed and cost: mean and standard deviation, "
        "and of how many seeds it is above.",
        ["difference", "budget", *(text for name in TAKEN.values() for text in (name, "above"))],
        differences,
    )
    return [section for section in (accuracies, seed_by_seed) if section.rows]


def by_budget(found: Found, way: str, measure: str) -> dict[int, list[float]]:
    """Budget → accuracies of all seeds, in percent."""
    values: dict[int, list[float]] = {}
    for outcome in sorted(found.outcomes, key=lambda outcome: outcome.run.budget):
        if outcome.run.way == way:
            values.setdefault(outcome.run.budget, []).append(100 * getattr(outcome.judged, measure))
    return values


def start_mean(found: Found, measure: str) -> float:
    return mean(100 * getattr(judged, measure) for judged in found.start.values())


def _of(found: Found, way: str, budget: int) -> list[Outcome]:
    return [outcome for outcome in found.outcomes if (outcome.run.way, outcome.run.budget) == (way, budget)]


def _percents(by_seed: dict[int, Judged]) -> list[str]:
    return [percent([getattr(judged, measure) for judged in by_seed.values()]) for measure in TAKEN]


def _differences(frozen: Iterable[Outcome], unfrozen: Iterable[Outcome]) -> list[str]:
    one, other = _contender(frozen), _contender(unfrozen)
    cells = []
    for measure in TAKEN:
        seeds = sorted(one.seeds(measure) & other.seeds(measure))
        pairs = zip(one.values(measure, seeds), other.values(measure, seeds), strict=True)
        cells += [difference(one, other, measure), f"{sum(a > b for a, b in pairs)} of {len(seeds)}"]
    return cells


def _contender(outcomes: Iterable[Outcome]) -> Contender:
    by_seed = {o.run.seed: {measure: getattr(o.judged, measure) for measure in TAKEN} for o in outcomes}
    return Contender("", 0, by_seed)
