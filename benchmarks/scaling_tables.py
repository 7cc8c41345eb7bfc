"""The tables of `benchmarks.scaling`: weak scaling from one rank to two, and what keys of the ds_config change in it.

One rank has the memory bandwidth, the shared cache and the clock of the whole machine to itself. So one rank alone and
two ranks are measured in turn with a third contender: two ranks of one rank each, at the same time, that know nothing
of one another. What they lose against the one alone is the machine's doing; what two ranks lose against them is the
cost of training together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from benchmarks.loaded_batches import AHEAD
from benchmarks.rounds import Costs, ratio_text, take_turns
from benchmarks.scaling_ranks import LOADED_STEPS, Case, StepSeconds, collective_seconds, forget, prepare, train
from benchmarks.tables import Section
from tests.distributed import RankPool

RANKS = 2
TIMEOUT = 600
REPETITIONS = 3
TARGET, TARGET_STAGES = "≥ 0.95", (1, 2)
SMALL_BUCKETS = {"reduce_bucket_size": 5_000_000}
"""As in ds_configs/zero2_cpu.json; the trainer's default is 5e7."""
BASE = "reduce_bucket_size 5e6"
KEYS: dict[str, dict[str, Any]] = {
    BASE: {},
    "reduce_bucket_size 5e5": {"reduce_bucket_size": 500_000},
    "reduce_bucket_size 5e7 (default)": {"reduce_bucket_size": 50_000_000},
    "reduce_scatter false": {"reduce_scatter": False},
    "use_multi_rank_bucket_allreduce false": {"use_multi_rank_bucket_allreduce": False},
    "contiguous_gradients false": {"contiguous_gradients": False},
}


@dataclass(frozen=True)
class Comparison:
    """What meets in one round: the first case on one rank, alone and apart, and every case on two."""

    cases: Sequence[Case]
    rounds: int
    target: str = "none"


class Contenders:
    """Three sets of ranks: one rank, a second one apart from it, and two ranks together."""

    def __init__(self, one: RankPool, other: RankPool, together: RankPool, cases: Sequence[Case]) -> None:
        self._one, self._other, self._together, self._cases = one, other, together, cases
        self.parts: dict[str, list[StepSeconds]] = {name: [] for name in ("alone", "apart", *(c.name for c in cases))}
        for pool in (one, other):
            pool.run(prepare, cases[0], timeout=TIMEOUT)
        for case in cases:
            together.run(prepare, case, timeout=TIMEOUT)

    def measure(self, rounds: int) -> dict[str, Costs]:
        """Seconds of a step, of the slower rank where there are two: alone, apart, and by the name of the case."""
        together = {case.name: partial(self._trained_together, case.name) for case in self._cases}
        return take_turns({"alone": self._alone, "apart": self._apart, **together}, rounds)

    def collectives(self, name: str) -> tuple[float, int]:
        """Seconds and number of the collectives of a step of two ranks, with nothing else to do."""
        by_rank = self._together.run(collective_seconds, name, REPETITIONS, timeout=TIMEOUT)
        return max(seconds for seconds, _ in by_rank), by_rank[0][1]

    def forget(self) -> None:
        """Ends the loaders' workers, which a rank that is killed would leave to themselves for a moment."""
        for pool in (self._one, self._other, self._together):
            pool.run(forget)

    def _alone(self) -> float:
        return self._slowest("alone", self._one.run(train, self._cases[0].name, timeout=TIMEOUT))

    def _apart(self) -> float:
        name = self._cases[0].name
        with ThreadPoolExecutor(RANKS) as threads:
            asked = [threads.submit(pool.run, train, name, timeout=TIMEOUT) for pool in (self._one, self._other)]
            return self._slowest("apart", [answer.result()[0] for answer in asked])

    def _trained_together(self, name: str) -> float:
        return self._slowest(name, self._together.run(train, name, timeout=TIMEOUT))

    def _slowest(self, name: str, by_rank: Sequence[StepSeconds]) -> float:
        slowest = max(by_rank, key=lambda seconds: seconds.total)
        self.parts[name].append(slowest)
        return slowest.total


def weak_sections(model: Case, comparisons: Sequence[Comparison], notes: Sequence[str]) -> Iterator[Section]:
    """Efficiency, and where the time goes; a row for every case in both. `model`: what most of them train."""
    efficiencies, breakdowns = [], []
    for comparison in comparisons:  # each with fresh ranks: what engines leave behind in the heap adds up to a GB
        with RankPool(1) as one, RankPool(1) as other, RankPool(RANKS) as together:
            contenders = Contenders(one, other, together, comparison.cases)
            costs = contenders.measure(comparison.rounds)
            for case in comparison.cases:
                efficiencies.append(efficiency_row(case, costs, comparison.target))
                breakdowns.append(breakdown_row(case, contenders.parts, contenders.collectives(case.name)))
                print(f"# {' | '.join(efficiencies[-1])} || {' | '.join(breakdowns[-1])}", flush=True)
            contenders.forget()
    rounds = sorted({comparison.rounds for comparison in comparisons}, reverse=True)
    yield Section(
        f"Weak scaling from one rank to two: {model.name}",
        f"Micro-batch {model.micro_batch} a rank where the row names no other, accumulation 1, one thread a rank, "
        "gloo. *Alone*: one rank, the other core idle but for the data worker of the loader's row. *Apart*: two ranks "
        "at once, each a training of its own. *Together*: two ranks, one training. Alone and apart have the default "
        "`reduce_bucket_size`, and so has together where the row names none. *Machine* = alone / apart, "
        "*communication* = apart / together, *efficiency* = alone / together, their product. All take turns in "
        f"{' or '.join(map(str, rounds))} rounds: medians and quartiles, of two rounds the mean and both values. The "
        f"loader's row: each turn {LOADED_STEPS} steps in a row after {AHEAD} that do not count, since their data were "
        "made in the turns of others.",
        ["case", "alone, s", "apart, s", "together, s", "machine", "communication", "efficiency", "target"],
        efficiencies,
        notes,
    )
    yield Section(
        f"Where the step goes: {model.name}",
        "Seconds of the slower rank, apart → together, medians. The differences are collectives, waiting for the other "
        "rank, and the copies that DeepSpeed makes for them. *Collectives*: those of a step called one after another "
        "with nothing else to do, the fastest of "
        f"{REPETITIONS}; in brackets their number.",
        ["case", "data", "forward", "backward", "update", "collectives", "share of the step"],
        breakdowns,
    )


def keys_section(case: Case, rounds: int) -> Section:
    """ZeRO-1 and 2 on two ranks with one key changed; all take turns."""
    cases = [
        replace(case, name=f"ZeRO-{stage}, {name}", stage=stage, zero={**SMALL_BUCKETS, **keys})
        for stage in TARGET_STAGES
        for name, keys in KEYS.items()
    ]
    with RankPool(RANKS) as ranks:
        for each in cases:
            ranks.run(prepare, each, timeout=TIMEOUT)
        costs = take_turns({each.name: _slower_rank(ranks, each.name) for each in cases}, rounds)
        collectives = {each.name: ranks.run(collective_seconds, each.name, REPETITIONS)[0] for each in cases}
    return Section(
        f"What keys of `zero_optimization` change: {case.name}",
        f"Two ranks, fp32, micro-batch {case.micro_batch}, accumulation 1, reduce_bucket_size 5e6 in every row that "
        "names no other. Seconds of a step of the slower rank and how many times as fast it is as the first row of its "
        f"stage, in {rounds} rounds in turn; and the collectives as above.",
        ["key", "step, s", "speed", "collectives, s"],
        [key_row(each, costs, collectives[each.name]) for each in cases],
    )


def _slower_rank(ranks: RankPool, name: str) -> Callable[[], float]:
    return lambda: max(seconds.total for seconds in ranks.run(train, name, timeout=TIMEOUT))


def efficiency_row(case: Case, costs: Mapping[str, Costs], target: str) -> list[str]:
    """`costs`: of alone, apart, and by the name of the case."""
    alone, apart, together = costs["alone"], costs["apart"], costs[case.name]
    seconds = [f"{median(each.seconds):.2f}" for each in (alone, apart, together)]
    ratios = [ratio_text(apart, alone), ratio_text(together, apart), ratio_text(together, alone)]
    return [case.name, *seconds, *ratios, target]


def breakdown_row(case: Case, parts: Mapping[str, Sequence[StepSeconds]], collectives: tuple[float, int]) -> list[str]:
    """`parts`: of every turn, the first of which is thrown away; `collectives`: seconds and number."""

    def medians(name: str) -> list[float]:
        warm = parts[name][1:]
        return [median(getattr(each, part) for each in warm) for part in ("data", "forward", "backward", "update")]

    seconds, number = collectives
    apart, together = medians("apart"), medians(case.name)
    cells = [f"{before:.2f} → {after:.2f}" for before, after in zip(apart, together, strict=True)]
    return [case.name, *cells, f"{seconds:.2f} ({number})", f"{seconds / sum(together):.1%}"]


def key_row(case: Case, costs: Mapping[str, Costs], collectives: tuple[float, int]) -> list[str]:
    """`costs`: by the name of the case, that of its stage with `BASE` among them; `collectives`: seconds and number."""
    cost, baseline = costs[case.name], costs[f"ZeRO-{case.stage}, {BASE}"]
    seconds, number = collectives
    return [case.name, f"{median(cost.seconds):.2f}", ratio_text(cost, baseline), f"{seconds:.2f} ({number})"]
