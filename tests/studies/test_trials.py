"""What the study runs, in which order, and what that costs."""

import pytest

from studies.cost import STEPS_PER_EPOCH, flops, unit
from studies.trials import BUDGETS, FROZEN_COST, MAIN_FROZEN, POLICIES, Trial, all_trials, main_contrast, shortened
from trainer.freezing.schedule import predicted_saving
from trainer.model.config import ModelConfig
from trainer.model.flops import step_flops
from trainer.plan import plan_schedule
from trainer.recipe import parse_recipe


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("steps", BUDGETS)
def test_a_trial_has_the_steps_and_the_warmup_that_it_says(policy, steps):
    recipe = parse_recipe(Trial(policy, steps, seed=1).recipe(STEPS_PER_EPOCH), source="trial")
    schedule = plan_schedule(recipe, STEPS_PER_EPOCH)
    assert (schedule.total_steps, schedule.warmup_steps) == (steps, steps // 10)
    assert recipe.train.seed == 1
    assert recipe.freezing.how == POLICIES[policy]["how"]


@pytest.mark.parametrize("steps", BUDGETS)
def test_the_main_rivals_cost_the_same(steps):
    for policy in MAIN_FROZEN:
        frozen = flops(Trial(policy, steps, 0))
        assert frozen == pytest.approx(flops(Trial("none", steps, 0), shortened(steps)), rel=3e-3)
        assert frozen == pytest.approx(flops(Trial("none", shortened(steps), 0)), rel=3e-3)


def test_the_unfrozen_run_has_a_checkpoint_where_it_has_cost_as_much_as_the_frozen_one():
    for steps in BUDGETS:
        assert steps * FROZEN_COST[0] % FROZEN_COST[1] == 0
        assert shortened(steps) % Trial("none", steps, 0).every == 0


def test_cost_adds_up_the_steps_of_the_schedule():
    trial = Trial("cubic .5", BUDGETS[0], 0)
    recipe = parse_recipe(trial.recipe(STEPS_PER_EPOCH), source="trial")
    schedule = plan_schedule(recipe, STEPS_PER_EPOCH)
    whole = trial.steps * recipe.train.global_batch * step_flops(ModelConfig(**recipe.model.model_dump()), 0).total
    assert flops(trial) == pytest.approx(whole * (1 - predicted_saving(schedule, recipe.model)))
    first = schedule.freeze_steps()[0]
    assert flops(trial, first + 1) - flops(trial, first) < flops(trial, first) - flops(trial, first - 1)
    assert unit() == whole


def test_the_model_saves_what_vit_base_saves():
    trial = Trial("cubic .8", BUDGETS[0], 0)
    saved = 1 - flops(trial) / flops(Trial("none", trial.steps, 0))
    assert saved == pytest.approx(1 - FROZEN_COST[0] / FROZEN_COST[1], abs=2e-3)
    assert saved == pytest.approx(0.156, abs=0.015)


def test_every_trial_comes_once_with_its_own_folder_and_the_main_contrast_first():
    trials = all_trials(3)
    assert len({trial.name for trial in trials}) == len(set(trials)) == len(trials)
    main = [trial for seed in range(3) for trial in main_contrast(BUDGETS[0], seed)]
    assert trials[: len(main)] == main
    assert {trial.policy for trial in trials} == set(POLICIES)
    assert [trial for trial in trials if trial.seed > 0 and trial.policy not in ("none", *MAIN_FROZEN)] == []
