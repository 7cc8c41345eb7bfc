"""What a trial costs up to a step: matmul FLOPs, counted from shapes and the freeze schedule."""

from functools import cache
from itertools import pairwise

from studies.trials import BUDGETS, GLOBAL_BATCH, QUICK_BUDGETS, Trial
from trainer.freezing.schedule import FreezeSchedule
from trainer.model.flops import step_flops
from trainer.plan import plan_schedule
from trainer.recipe import Recipe, parse_recipe

STEPS_PER_EPOCH = 60_000 // GLOBAL_BATCH
"""On Fashion-MNIST. The cost of a step does not depend on it."""


def flops(trial: Trial, stop: int | None = None) -> int:
    """Of the first `stop` steps, all unless given."""
    recipe, schedule = _planned(trial)
    end = schedule.total_steps if stop is None else stop
    changes = sorted({step for step in schedule.freeze_steps() if step is not None and step < end})
    return sum(
        (after - before) * GLOBAL_BATCH * step_flops(recipe.model, schedule.frozen_units(before)).total
        for before, after in pairwise([0, *changes, end])
    )


def unit(*, quick: bool = False) -> int:
    """What tables and pictures count costs in: the unfrozen run of the first budget."""
    return flops(Trial("none", QUICK_BUDGETS[0] if quick else BUDGETS[0], seed=0, quick=quick))


@cache
def _planned(trial: Trial) -> tuple[Recipe, FreezeSchedule]:
    recipe = parse_recipe(trial.recipe(STEPS_PER_EPOCH), source=trial.name)
    return recipe, plan_schedule(recipe, STEPS_PER_EPOCH)
