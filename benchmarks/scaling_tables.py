"""The tables of `benchmarks.scaling`: weak scaling from one rank to two, and what keys of the ds_config change in it.

One rank has the memory bandwidth, the shared cache and the clock of the whole machine to itself. So one rank alone and
two ranks are measured in turn with a third contender: two ranks of one rank each, at the same time, that know nothing
of one another. What they lose against the one alone is the machine's doing; what two ranks lose against them is the
cost of training together."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import median
from typing import Any

from benchmarks.rounds import Costs, ratio_text, take_turns
from benchmarks.scaling_ranks import Case, StepSeconds, collective_seconds, forget, prepare, train
from benchmarks.tables import Section
from tests.distributed import RankPool

RANKS = 2
TIMEOUT = 600
REPETITIONS = 3
TARGET = "≥ 0.95"
KEYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "reduce_bucket_size 5e5": {"reduce_bucket_size": 500_000},
    "reduce_bucket_size 5e7": {"reduce_bucket_size": 50_000_000},
    "reduce_scatter false": {"reduce_scatter": False},
    "use_multi_rank_bucket_allreduce false": {"use_multi_rank_bucket_allreduce": False},
    "contiguous_gradients false": {"contiguous_gradients": False},
}


class Contenders:
    """Three sets of ranks with the same case: one rank, a second one apart from it, and two ranks together."""

    def __init__(self, one: RankPool, other: RankPool, together: RankPool, case: Case) -> None:
        self._one, self._other, self._together, self._name = one, other, together, case.name
        self.parts: dict[str, list[StepSeconds]] = {"alone": [], "apart": [], "together": []}
        for pool in (one, other, together):
            pool.run(prepare, case, timeout=TIMEOUT)

    def measure(self, rounds: int) -> dict[str, Costs]:
        """Seconds of a step, of the slower rank where there are two."""
        return take_turns({"alone": self._alone, "apart": self._apart, "together": self._trained_together}, rounds)

    def collectives(self) -> tuple[float, int]:
        """Seconds and number of the collectives of a step of two ranks, with nothing else to do."""
        by_rank = self._together.run(collective_seconds, self._name, REPETITIONS, timeout=TIMEOUT)
        return max(seconds for seconds, _ in by_rank), by_rank[0][1]

    def close(self) -> None:
        for pool in (self._one, self._other, self._together):
            pool.run(forget)

    def _alone(self) -> float:
        return self._slowest("alone", self._one.run(train, self._name, timeout=TIMEOUT))

    def _apart(self) -> float:
        with ThreadPoolExecutor(RANKS) as threads:
            asked = [threads.submit(pool.run, train, self._name, timeout=TIMEOUT) for pool in (self._one, self._other)]
            return self._slowest("apart", [answer.result()[0] for answer in asked])

    def _trained_together(self) -> float:
        return self._slowest("together", self._together.run(train, self._name, timeout=TIMEOUT))

    def _slowest(self, name: str, by_rank: Sequence[StepSeconds]) -> float:
        slowest = max(by_rank, key=lambda seconds: seconds.total)
        self.parts[name].append(slowest)
        return slowest.total


def weak_sections(model: str, cases: Sequence[Case], rounds: int, notes: Sequence[str]) -> Iterator[Section]:
    """Efficiency, and where the time goes; a row for every case in both."""
    efficiencies, breakdowns = [], []
    with RankPool(1) as one, RankPool(1) as other, RankPool(RANKS) as together:
        for case in cases:
            contenders = Contenders(one, other, together, case)
            costs = contenders.measure(rounds)
            efficiencies.append(_efficiency_row(case, costs))
            breakdowns.append(_breakdown_row(case, contenders.parts, contenders.collectives()))
            contenders.close()
            print(f"# {' | '.join(efficiencies[-1])} || {' | '.join(breakdowns[-1])}", flush=True)
    yield Section(
        f"Weak scaling from one rank to two: {model}",
        f"Micro-batch {cases[0].micro_batch} a rank, accumulation 1, one thread a rank, gloo. *Alone*: one rank, the "
        "other core idle. *Apart*: two ranks at once, each a training of its own. *Together*: two ranks, one training. "
        "*Machine* = alone / apart, *communication* = apart / together, *efficiency* = alone / together, their "
        f"product: medians and quartiles of {rounds} rounds, in which the three take turns.",
        ["case", "alone, s", "apart, s", "together, s", "machine", "communication", "efficiency", "target"],
        efficiencies,
        notes,
    )
    yield Section(
        f"Where the step goes: {model}",
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
        replace(case, name=f"ZeRO-{stage}, {name}", stage=stage, zero={**case.zero, **keys})
        for stage in (1, 2)
        for name, keys in KEYS.items()
    ]
    with RankPool(RANKS) as ranks:
        for each in cases:
            ranks.run(prepare, each, timeout=TIMEOUT)
        costs = take_turns({each.name: _slower_rank(ranks, each.name) for each in cases}, rounds)
        collectives = {each.name: ranks.run(collective_seconds, each.name, REPETITIONS)[0] for each in cases}
    rows = []
    for each in cases:
        baseline = costs[f"ZeRO-{each.stage}, as it is"]
        seconds, number = collectives[each.name]
        speed = ratio_text(costs[each.name], baseline)
        rows.append([each.name, f"{median(costs[each.name].seconds):.2f}", speed, f"{seconds:.2f} ({number})"])
    return Section(
        f"What keys of `zero_optimization` change: {case.name}",
        f"Two ranks, fp32, micro-batch {case.micro_batch}, accumulation 1. Seconds of a step of the slower rank and "
        "how many times as fast it is as the first row of its stage, in turn; and the collectives as above.",
        ["key", "step, s", "speed", "collectives, s"],
        rows,
    )


def _slower_rank(ranks: RankPool, name: str) -> Callable[[], float]:
    return lambda: max(seconds.total for seconds in ranks.run(train, name, timeout=TIMEOUT))


def _efficiency_row(case: Case, costs: dict[str, Costs]) -> list[str]:
    alone, apart, together = costs["alone"], costs["apart"], costs["together"]
    seconds = [f"{median(each.seconds):.2f}" for each in (alone, apart, together)]
    ratios = [ratio_text(apart, alone), ratio_text(together, apart), ratio_text(together, alone)]
    return [case.name, *seconds, *ratios, TARGET if case.stage in (1, 2) else "none"]


def _breakdown_row(case: Case, parts: dict[str, list[StepSeconds]], collectives: tuple[float, int]) -> list[str]:
    def medians(name: str) -> list[float]:
        warm = parts[name][1:]
        return [median(getattr(each, part) for each in warm) for part in ("data", "forward", "backward", "update")]

    seconds, number = collectives
    cells = [
        f"{apart:.2f} → {together:.2f}" for apart, together in zip(medians("apart"), medians("together"), strict=True)
    ]
    return [case.name, *cells, f"{seconds:.2f} ({number})", f"{seconds / sum(medians('together')):.1%}"]
