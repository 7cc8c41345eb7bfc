"""What the study runs, in which order, and what that costs."""

import json

import pytest

from studies.cost import STEPS_PER_EPOCH, flops, freezes_of, unit
from studies.image_sets import IMAGE_SETS
from studies.trials import (
    BUDGETS,
    CONTRASTED,
    POLICIES,
    WITH_EVERY_SEED,
    WITH_LONGEST_BUDGET,
    Trial,
    all_trials,
    main_contrast,
    shortened,
)
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
@pytest.mark.parametrize("policy", CONTRASTED)
def test_the_main_rivals_cost_the_same(policy, steps):
    frozen = flops(Trial(policy, steps, 0))
    assert frozen == pytest.approx(flops(Trial("none", steps, 0), shortened(policy, steps)), rel=3e-3)
    assert frozen == pytest.approx(flops(Trial("none", shortened(policy, steps), 0)), rel=3e-3)


def test_what_is_fine_tuned_has_a_checkpoint():
    first, *longer = BUDGETS
    unfrozen = Trial("none", first, 0)
    assert unfrozen.finetuned_at == {first, shortened("cubic .8", first)}
    assert all(step % unfrozen.every == 0 for step in unfrozen.finetuned_at)
    assert Trial("cubic .8", first, 0).finetuned_at == {first}
    shorter = shortened("cubic .8", first)
    assert Trial("none", shorter, 0).finetuned_at == {shorter}
    assert Trial("cubic .8 scaled", first, 0).finetuned_at == set()
    assert not any(Trial(policy, steps, 0).finetuned_at for policy in ("none", "cubic .8") for steps in longer)


def test_cost_adds_up_the_steps_of_the_schedule():
    trial = Trial("cubic .5", BUDGETS[0], 0)
    recipe = parse_recipe(trial.recipe(STEPS_PER_EPOCH), source="trial")
    schedule = plan_schedule(recipe, STEPS_PER_EPOCH)
    whole = trial.steps * recipe.train.global_batch * step_flops(ModelConfig(**recipe.model.model_dump()), 0).total
    assert flops(trial) == pytest.approx(whole * (1 - predicted_saving(schedule, recipe.model)))
    first = schedule.freeze_steps()[0]
    assert flops(trial, first + 1) - flops(trial, first) < flops(trial, first) - flops(trial, first - 1)
    assert unit() == whole


def test_cost_of_a_run_that_chose_its_freezes_is_that_of_the_same_steps_planned(tmp_path):
    planned = Trial("late", BUDGETS[0], 0)
    recipe = parse_recipe(planned.recipe(STEPS_PER_EPOCH), source="trial")
    steps = [step for step in plan_schedule(recipe, STEPS_PER_EPOCH).freeze_steps() if step is not None]
    events = [{"event": "freeze", "step": step, "units": [unit]} for unit, step in enumerate(steps[2:], start=2)]
    events.insert(0, {"event": "freeze", "step": steps[0], "units": [0, 1]})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    chosen = Trial("plasticity", BUDGETS[0], 0)
    freezes = freezes_of(tmp_path)
    assert freezes == [steps[0], steps[0], *steps[2:]]
    assert flops(chosen, None, steps) == flops(planned) < flops(chosen) == unit()
    assert flops(chosen, 600, steps) == flops(planned, 600)


def test_the_model_saves_what_vit_base_saves():
    trial = Trial("cubic .8", BUDGETS[0], 0)
    saved = 1 - flops(trial) / flops(Trial("none", trial.steps, 0))
    assert saved == pytest.approx(0.156, abs=0.015)


def test_every_trial_comes_once_with_its_own_folder_and_the_main_contrast_first():
    trials = all_trials(BUDGETS, 3, others=True)
    assert len({trial.name for trial in trials}) == len(set(trials)) == len(trials)
    main = [trial for seed in range(3) for trial in main_contrast(BUDGETS[0], seed)]
    assert trials[: len(main)] == main
    assert {trial.policy for trial in trials} == set(POLICIES)
    others = [trial for trial in trials if trial.policy not in ("none", *CONTRASTED)]
    assert {trial.policy for trial in others if trial.seed > 0} == set(WITH_EVERY_SEED)
    assert {trial.steps for trial in others} == {BUDGETS[0]}
    assert {trial.steps for trial in main} == {BUDGETS[0], *(shortened(policy, BUDGETS[0]) for policy in CONTRASTED)}


def test_the_longest_budget_has_two_policies_and_their_rivals_alone():
    longest = [trial for trial in all_trials(BUDGETS, 2, others=True) if trial.steps > max(BUDGETS[:-1])]
    frozen = {(policy, BUDGETS[-1]) for policy in WITH_LONGEST_BUDGET}
    unfrozen = {("none", BUDGETS[-1]), *(("none", shortened(policy, BUDGETS[-1])) for policy in WITH_LONGEST_BUDGET)}
    assert {(trial.policy, trial.steps) for trial in longest} == frozen | unfrozen
    assert len(longest) == 2 * (len(frozen) + len(unfrozen)) == 10


def test_fading_stages_change_the_loss_and_nothing_of_the_cost():
    fading = Trial("none, stages fade", BUDGETS[0], 0)
    assert ModelConfig(**fading.model).stage_weights_at(0.5) == [0.5, 0.5, 1.0, 1.0]
    assert flops(fading) == unit()
    freezes = plan_schedule(
        parse_recipe(Trial("cubic .8", 1000, 0).recipe(STEPS_PER_EPOCH), source="trial"), STEPS_PER_EPOCH
    ).freeze_steps()
    assert [freezes[block + 1] for block in (1, 3)] == [pytest.approx(1000 * share, abs=10) for share in (0.62, 0.69)]


def test_photographs_have_the_main_contrast_of_the_first_budget_alone():
    fashion, photographs = IMAGE_SETS
    assert photographs.trials(2, quick=False) == [t for seed in range(2) for t in main_contrast(BUDGETS[0], seed)]
    assert fashion.trials(2, quick=False) == all_trials(BUDGETS, 2, others=True)
    assert all(trial.quick for image_set in IMAGE_SETS for trial in image_set.trials(1, quick=True))
