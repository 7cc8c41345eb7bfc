"""Contenders timed in turn, in many short rounds.

A shared machine gets faster and slower by the minute. Contenders that take turns meet the same weather, so the ratio
within one round is what to trust; it is taken for every round, and the median of these is reported."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Costs:
    """What one contender needed per item in each round, in seconds."""

    seconds: NDArray[np.float64]

    @property
    def median_rate(self) -> float:
        """Items per second in the median round."""
        return 1 / float(np.median(self.seconds))

    @property
    def best_rate(self) -> float:
        """Items per second in the fastest round, which others disturbed least."""
        return 1 / float(self.seconds.min())

    def times_faster_than(self, baseline: "Costs") -> tuple[float, float, float]:
        """How many times the baseline's rate: the median of the rounds' ratios, and their quartiles."""
        low, middle, high = np.quantile(baseline.seconds / self.seconds, [0.25, 0.5, 0.75])
        return float(middle), float(low), float(high)


def take_turns(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Costs]:
    """Calls every contender once per round, in order; each returns its seconds per item.

    One more round comes first and is thrown away: it fills caches and buffers."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, contender in contenders.items():
            cost = contender()
            if number:
                seconds[name].append(cost)
    return {name: Costs(np.array(costs)) for name, costs in seconds.items()}


def cpu_seconds(work: Callable[[], object], items: int) -> Callable[[], float]:
    """A contender that does some work and returns the CPU time per item, of all threads of this process."""

    def measure() -> float:
        start = time.process_time()
        work()
        return (time.process_time() - start) / items

    return measure


def ratio_text(costs: Costs, baseline: Costs) -> str:
    """`2.04 (2.01–2.06)`: median and quartiles of the rounds' ratios; `1` for the baseline itself.

    Two rounds have no quartiles: `2.04 (2.01, 2.06)` are the mean and both."""
    if costs is baseline:
        return "1"
    middle, low, high = costs.times_faster_than(baseline)
    ratios = baseline.seconds / costs.seconds
    spread = f"{low:.2f}–{high:.2f}" if len(ratios) > 2 else ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return f"{middle:.2f} ({spread})" if len(ratios) > 1 else f"{middle:.2f}"
