"""When each unit freezes, and its learning rate until then: a pure function of the step.

What is known in advance, that is: `trainer.freezing.plasticity` decides by measurements.

Steps are optimizer steps, counted from 0. Unit 0 is the patch embedding with the class token, unit i is block i-1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from trainer.errors import BadInput
from trainer.freezing.config import FreezingConfig
from trainer.model.config import ModelConfig
from trainer.model.flops import step_flops

_EXPONENT = {"linear": 1, "squared": 2, "cubic": 3}


@dataclass(frozen=True)
class FreezeSchedule:
    """FreezeOut (arXiv 1706.04983) on the units of a ViT, or a list of steps.

    With T steps, W of them warm-up, unit i of a ViT of ``depth`` blocks trains for A_i = (T-W)·ratio_i steps after the
    warm-up, ratio_i = (t0 + (1-t0)·i/depth)^p with p = 1, 2 or 3 for linear, squared or cubic. Its rate follows a
    cosine from its start, lr or lr/ratio_i when scaled, to zero, and it is frozen from the first step beyond. The
    ratios rise with i, so the frozen units are always a prefix; several may freeze at one step. The last unit has
    ratio 1 and never freezes.

    With ``how: steps`` unit i is frozen from step n_i on, the recipe's i-th; A_i = n_i - W.

    ``min_lr`` is the floor of the plain cosine, that of units for which no freeze is foreseen: all with ``how: none``
    and ``plasticity``, those beyond the list with ``steps``. It does not apply to FreezeOut's units, whose rate has to
    reach zero so that freezing changes nothing abruptly.

    The ``initial_units`` are frozen from step 0 on, and change nothing for the others.

    Raises BadInput, naming the recipe's keys, on a schedule that makes no sense.
    """

    config: FreezingConfig
    depth: int
    total_steps: int
    warmup_steps: int
    lr: float
    min_lr: float

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise BadInput(f"model.depth {self.depth}: the encoder needs at least one block")
        if self.total_steps < 1:
            raise BadInput(f"a run of {self.total_steps} steps: it needs at least one; give more data or epochs")
        if not 0 <= self.warmup_steps < self.total_steps:
            raise BadInput(
                f"a warm-up of {self.warmup_steps} steps in a run of {self.total_steps}: it must end before the run "
                "does; lower optimizer.warmup_epochs or train for longer"
            )
        if not 0 < self.lr < math.inf:
            raise BadInput(f"a learning rate of {self.lr:g}: it must be positive; set optimizer.lr or optimizer.blr")
        if not 0 <= self.min_lr <= self.lr:
            raise BadInput(f"optimizer.min_lr {self.min_lr:g}: it must lie between 0 and the learning rate {self.lr:g}")
        if self.config.initial_units > self.depth:
            raise BadInput(
                f"freezing.initial_units {self.config.initial_units}: of the model's {self.num_units} units the last "
                f"must train; take at most {self.depth}"
            )
        self._check_steps()

    def _check_steps(self) -> None:
        steps = self._listed_steps
        if len(steps) > self.depth:
            raise BadInput(
                f"freezing.steps: {len(steps)} of them for the model's {self.num_units} units, of which the last must "
                f"train to the end; give at most {self.depth}"
            )
        if steps and steps[0] <= self.warmup_steps:
            raise BadInput(
                f"freezing.steps: unit 0 is to freeze at step {steps[0]}, within the warm-up of {self.warmup_steps} "
                "steps; freeze it later, or shorten optimizer.warmup_epochs"
            )
        if steps and steps[-1] >= self.total_steps:
            raise BadInput(
                f"freezing.steps: step {steps[-1]} lies beyond the last one of the run, {self.total_steps - 1}; leave "
                "units that train to the end out of the list"
            )

    @property
    def _listed_steps(self) -> list[int]:
        """First frozen step of each unit in the recipe's list; empty if it has none."""
        return [round(step * self.total_steps) if step < 1 else int(step) for step in self.config.steps]

    @property
    def num_units(self) -> int:
        """Units of the encoder, depth + 1."""
        return self.depth + 1

    def freeze_steps(self) -> list[int | None]:
        """For each unit the first step at which it is frozen; None for a unit that trains to the end."""
        return [self._freeze_step(unit) for unit in range(self.num_units)]

    def frozen_units(self, step: int) -> int:
        """Length of the frozen prefix while ``step`` is taken."""
        return sum(first is not None and first <= step for first in self.freeze_steps())

    def learning_rates(self, step: int) -> list[float | None]:
        """Learning rate of each unit at ``step``; None once it is frozen."""
        frozen = self.frozen_units(step)
        return [None if unit < frozen else self._learning_rate(unit, step) for unit in range(self.num_units)]

    def _is_foreseen(self, unit: int) -> bool:
        """Whether the unit's rate anneals to zero, at its freeze or, that of FreezeOut's last unit, with the run."""
        return self.config.how in _EXPONENT or unit < len(self.config.steps)

    def _ratio(self, unit: int) -> float:
        """Share of the steps after the warm-up for which the unit trains."""
        if not self._is_foreseen(unit):
            return 1.0
        if self.config.how == "steps":
            return (self._listed_steps[unit] - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        t0 = self.config.t0
        return (t0 + (1 - t0) * unit / self.depth) ** _EXPONENT[self.config.how]

    def _annealing_steps(self, unit: int) -> float:
        return (self.total_steps - self.warmup_steps) * self._ratio(unit)

    def _freeze_step(self, unit: int) -> int | None:
        if unit < self.config.initial_units:
            return 0
        if not self._is_foreseen(unit):
            return None
        if self.config.how == "steps":
            return self._listed_steps[unit]
        step = self.warmup_steps + math.floor(self._annealing_steps(unit)) + 1
        return step if step < self.total_steps else None

    def _learning_rate(self, unit: int, step: int) -> float:
        foreseen = self._is_foreseen(unit)
        start = self.lr / self._ratio(unit) if foreseen and self.config.scale_lr else self.lr
        if step < self.warmup_steps:
            peak = start if self.config.warmup == "per_unit" else self.lr
            return peak * step / self.warmup_steps
        floor = 0.0 if foreseen else self.min_lr
        progress = (step - self.warmup_steps) / self._annealing_steps(unit)
        return floor + (start - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def predicted_saving(schedule: FreezeSchedule, model_config: ModelConfig) -> float:
    """Fraction of a run's matmul FLOPs that freezing saves, between 0 and 1.

    Raises ValueError if the schedule is for another depth than the model's."""
    if schedule.depth != model_config.num_blocks:
        raise ValueError(f"schedule for {schedule.depth} blocks, model of {model_config.num_blocks}")
    return saving(schedule, [step_flops(model_config, units).total for units in range(schedule.num_units)])


def saving(schedule: FreezeSchedule, step_costs: Sequence[float]) -> float:
    """Fraction of a run's cost that freezing saves, of anything that is spent step by step: FLOPs, seconds, bytes.

    ``step_costs[k]``: what a step with ``k`` frozen units costs, for k = 0 … depth."""
    changes = sorted({step for step in schedule.freeze_steps() if step is not None})
    spent = sum(
        (end - start) * step_costs[schedule.frozen_units(start)]
        for start, end in pairwise([0, *changes, schedule.total_steps])
    )
    return 1 - spent / (schedule.total_steps * step_costs[0])
