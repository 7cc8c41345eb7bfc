"""What a trial costs up to a step: matmul FLOPs, counted from shapes and the freeze schedule."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

from studies.trials import BUDGETS, GLOBAL_BATCH, QUICK_BUDGETS, Trial
from trainer.freezing.schedule import FreezeSchedule
from trainer.model.flops import step_flops
from trainer.plan import plan_schedule
from trainer.recipe import Recipe, parse_recipe
from trainer.tracking.metrics import read_metrics

STEPS_PER_EPOCH = 60_000 // GLOBAL_BATCH
"""On Fashion-MNIST. The cost of a step does not depend on it."""


def flops(trial: Trial, stop: int | None = None, freezes: Sequence[int] | None = None) -> int:
    """Of the first `stop` steps, all unless given. `freezes`: first frozen step of unit 0, 1, … of those that froze;
    the schedule's unless given, which knows nothing of plasticity's."""
    recipe, schedule = _planned(trial)
    if freezes is None:
        freezes = [step for step in schedule.freeze_steps() if step is not None]
    end = schedule.total_steps if stop is None else stop
    return sum(
        (after - before) * GLOBAL_BATCH * step_flops(recipe.model, sum(step <= before for step in freezes)).total
        for before, after in pairwise([0, *sorted({step for step in freezes if step < end}), end])
    )


def freezes_of(run: Path) -> list[int]:
    """First frozen step of each unit that froze, from the run's log."""
    return [event["step"] for event in read_metrics(run) if event["event"] == "freeze" for _ in event["units"]]


def unit(*, quick: bool = False) -> int:
    """What tables and pictures count costs in: the unfrozen run of the first budget."""
    return flops(Trial("none", QUICK_BUDGETS[0] if quick else BUDGETS[0], seed=0, quick=quick))


@cache
def _planned(trial: Trial) -> tuple[Recipe, FreezeSchedule]:
    recipe = parse_recipe(trial.recipe(STEPS_PER_EPOCH), source=trial.name)
    return recipe, plan_schedule(recipe, STEPS_PER_EPOCH)
