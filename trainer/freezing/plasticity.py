"""Freezing by measurement: a unit leaves the training when its block has stopped changing ("knowledge-guided
training", as in Egeria, EuroSys 2023).

`PlasticityPolicy` decides and `trainer.freezing.probe` measures. The policy is arithmetic on what it is told: the same
measurements give the same decisions on every rank, and in a resumed run.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.freezing.schedule import FreezeSchedule

_SMOOTHING = 0.5
"""Weight of the latest measurement in the running mean."""


@dataclass
class _State:
    """Lists by unit."""

    decided: list[int] = field(default_factory=list)
    """Steps at which the units above the initial ones were chosen to freeze."""
    plasticity: list[float | None] = field(default_factory=list)
    """Running mean of the measurements."""
    most: list[float] = field(default_factory=list)
    """The largest that it was."""
    low: list[int] = field(default_factory=list)
    """Measurements in a row in which it was below the tolerance."""


class PlasticityPolicy:
    """The face of a `FreezeSchedule`, whose freezes are decided on the way.

    Every ``probe_every`` steps after the warm-up comes a movement of each live unit: how far its block has moved since
    the last time, relative to what it does (`probe.Probe`). A unit's plasticity is the running mean of its movements.

    The unit at the head of the live prefix is chosen once its plasticity has been below ``tolerance`` times its own
    maximum for ``patience`` measurements in a row. Its learning rate then anneals to zero within ``cool_down`` steps,
    ½·(1 + cos(π·n/cool_down)) times the plain cosine after n steps, and it is frozen. One unit at most is chosen at a
    measurement, never more than ``at_most`` of all units and never the last one."""

    def __init__(self, schedule: FreezeSchedule):
        """`schedule`: the plain cosine of the run."""
        self._schedule, self._config = schedule, schedule.config
        units = schedule.num_units
        self._state = _State(plasticity=[None] * units, most=[0.0] * units, low=[0] * units)

    @property
    def most_frozen_units(self) -> int:
        """The most that may ever be frozen."""
        return min(math.floor(self._config.at_most * self._schedule.num_units), self._schedule.num_units - 1)

    def frozen_units(self, step: int) -> int:
        """Length of the frozen prefix while ``step`` is taken, by the decisions so far."""
        done = sum(decided + self._config.cool_down <= step for decided in self._state.decided)
        return self._config.initial_units + done

    def learning_rates(self, step: int) -> list[float | None]:
        """Learning rate of each unit at ``step``, by the decisions so far; None once it is frozen."""
        frozen = self.frozen_units(step)
        rates = self._schedule.learning_rates(step)
        return [
            None if rate is None or unit < frozen else rate * self._cooling(unit, step)
            for unit, rate in enumerate(rates)
        ]

    def is_probed(self, step: int) -> bool:
        """Whether units are to be measured before this step: no longer once no further one may freeze."""
        since_warmup = step - self._schedule.warmup_steps
        due = since_warmup >= 0 and since_warmup % self._config.probe_every == 0
        return due and self.frozen_units(step) < self.most_frozen_units

    def observe(self, step: int, movements: Sequence[float | None]) -> list[float | None]:
        """Take the movement of each unit of a measurement before ``step``, None for what is frozen and, the first time,
        for all; choose a unit if one is to freeze. Returns each live unit's plasticity relative to its maximum.

        A movement that is not finite, of weights that are not, is left out, and the unit's patience begins anew."""
        state = self._state
        for unit, movement in enumerate(movements):
            if movement is not None and math.isfinite(movement):
                self._add(unit, movement)
            else:
                state.low[unit] = 0
        head = self.frozen_units(step)
        if head < self.most_frozen_units and state.low[head] >= self._config.patience:
            state.decided.append(step)
        return [
            None if movement is None or mean is None or not most else mean / most
            for movement, mean, most in zip(movements, state.plasticity, state.most, strict=True)
        ]

    def state(self) -> dict[str, Any]:
        """All that decisions depend on, JSON-able, for a checkpoint."""
        return asdict(self._state)

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back a `state`."""
        self._state = _State(**state)

    def _add(self, unit: int, movement: float) -> None:
        state, before = self._state, self._state.plasticity[unit]
        mean = movement if before is None else before + _SMOOTHING * (movement - before)
        state.plasticity[unit] = mean
        state.most[unit] = max(state.most[unit], mean)
        state.low[unit] = state.low[unit] + 1 if mean < self._config.tolerance * state.most[unit] else 0

    def _cooling(self, unit: int, step: int) -> float:
        """Factor on the plain learning rate: below 1 once the unit is chosen."""
        position = unit - self._config.initial_units
        if position >= len(self._state.decided) or self._config.cool_down == 0:
            return 1.0
        cooled = step - self._state.decided[position]
        return 1.0 if cooled < 0 else 0.5 * (1 + math.cos(math.pi * cooled / self._config.cool_down))
