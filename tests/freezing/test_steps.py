"""Freezing at listed steps, and from the start: arithmetic, and what is refused."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from trainer.errors import BadInput
from trainer.freezing.config import FreezingConfig
from trainer.freezing.rebatch import micro_batches_of_run
from trainer.freezing.schedule import FreezeSchedule, predicted_saving
from trainer.model.config import ModelConfig
from trainer.model.flops import step_flops

LR, MIN_LR = 1e-3, 1e-5


def schedule(how: Any = "steps", *, depth: int = 4, total_steps: int = 100, **config: Any) -> FreezeSchedule:
    return FreezeSchedule(FreezingConfig(how=how, **config), depth, total_steps, warmup_steps=10, lr=LR, min_lr=MIN_LR)


def test_each_unit_is_frozen_from_its_own_step_on() -> None:
    listed = schedule(steps=[40, 40, 71])
    assert listed.freeze_steps() == [40, 40, 71, None, None]
    assert [listed.frozen_units(step) for step in (0, 39, 40, 70, 71, 99)] == [0, 0, 2, 2, 3, 3]


def test_shares_are_of_all_steps_of_the_run() -> None:
    assert schedule(steps=[0.4, 0.4, 0.71]).freeze_steps() == [40, 40, 71, None, None]
    assert schedule(steps=[0.5], total_steps=31).freeze_steps()[0] == 16


@pytest.mark.parametrize("scale_lr", [False, True])
def test_the_rate_anneals_to_zero_at_the_units_own_step(scale_lr: bool) -> None:
    listed = schedule(steps=[40, 70], scale_lr=scale_lr)
    for unit, freeze in ((0, 40), (1, 70)):
        start = LR * (100 - 10) / (freeze - 10) if scale_lr else LR
        for step in range(10, freeze):
            expected = start / 2 * (1 + math.cos(math.pi * (step - 10) / (freeze - 10)))
            assert listed.learning_rates(step)[unit] == pytest.approx(expected, rel=1e-12)
        assert listed.learning_rates(freeze)[unit] is None
        assert (listed.learning_rates(freeze - 1)[unit] or 1) < 0.003 * start


def test_units_beyond_the_list_follow_the_plain_cosine() -> None:
    listed, plain = schedule(steps=[40]), schedule("none")
    for step in range(100):
        assert listed.learning_rates(step)[1:] == plain.learning_rates(step)[1:]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"steps": [0.5, 20]}, "0.5, 20.*not both"),
        ({"steps": [20, 30.5]}, "whole numbers of steps"),
        ({"steps": [0]}, "whole numbers of steps, from 1"),
        ({"steps": [-3]}, "whole numbers of steps, from 1"),
        ({"steps": [30, 20]}, "let the numbers rise"),
        ({"steps": [0.3, 0.2]}, "let the numbers rise"),
        ({}, "none are given: set steps"),
        ({"how": "cubic", "steps": [30]}, "how is cubic: set how to steps"),
        ({"how": "plasticity", "probe_every": 50, "cool_down": 51}, "cool_down 51 is longer than the 50 steps"),
        ({"how": "plasticity", "rebatch": True}, "rebatch needs to know the freezes in advance"),
        ({"initial_units": -1}, "initial_units"),
        ({"tolerance": 0}, "tolerance"),
        ({"tolerance": 1}, "tolerance"),
    ],
)
def test_keys_that_make_no_sense_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        FreezingConfig.model_validate({"how": "steps"} | config)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"steps": [20, 30, 40, 50, 60]}, "freezing.steps: 5 of them for the model's 5 units.*at most 4"),
        ({"steps": [10]}, "unit 0 is to freeze at step 10, within the warm-up of 10 steps"),
        ({"steps": [0.05]}, "unit 0 is to freeze at step 5, within the warm-up"),
        ({"steps": [20, 100]}, "step 100 lies beyond the last one of the run, 99"),
        ({"how": "none", "initial_units": 5}, "freezing.initial_units 5: of the model's 5 units the last must train"),
    ],
)
def test_steps_that_the_run_does_not_have_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        schedule(**config)


@pytest.mark.parametrize("how", ["none", "cubic"])
def test_initial_units_are_frozen_throughout_and_change_nothing_for_the_others(how: str) -> None:
    without, with_two = schedule(how), schedule(how, initial_units=2)
    assert with_two.freeze_steps() == [0, 0, *without.freeze_steps()[2:]]
    for step in range(100):
        assert with_two.frozen_units(step) == max(2, without.frozen_units(step))
        assert with_two.learning_rates(step)[2:] == without.learning_rates(step)[2:]
        assert with_two.learning_rates(step)[:2] == [None, None]


def test_savings_count_initial_units_against_a_run_without_any() -> None:
    model = ModelConfig(depth=4, num_heads=3, embed_dim=48, stages=[1, 3], scales=[1, 1])
    costs = [step_flops(model, units).total for units in range(5)]
    assert predicted_saving(schedule("none", initial_units=2), model) == pytest.approx(1 - costs[2] / costs[0])


def test_rebatching_begins_with_the_first_freeze_beyond_the_initial_units() -> None:
    sizes = micro_batches_of_run((2, 2, 2, 4, 8), schedule(steps=[20, 30, 40, 50], initial_units=2))
    assert sizes.changes == ((0, 2), (40, 4), (50, 8))
