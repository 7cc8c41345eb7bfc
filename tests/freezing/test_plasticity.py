"""Freezing by measurement, on movements made up for the purpose: who is chosen, when, and who never is."""

import json
import math
from typing import Any

import pytest

from trainer.freezing.config import FreezingConfig
from trainer.freezing.plasticity import PlasticityPolicy
from trainer.freezing.schedule import FreezeSchedule

UNITS, TOTAL, WARMUP, LR = 5, 400, 20, 1e-3


def policy(*, min_lr: float = LR, **config: Any) -> PlasticityPolicy:
    """With `min_lr` = lr the plain rate is constant after the warm-up."""
    given = {"probe_every": 10, "patience": 2, "tolerance": 0.3, "cool_down": 4, "at_most": 1.0} | config
    freezing = FreezingConfig.model_validate({"how": "plasticity", **given})
    return PlasticityPolicy(FreezeSchedule(freezing, UNITS - 1, TOTAL, WARMUP, LR, min_lr))


def drive(guided: PlasticityPolicy, movement: Any, steps: int = TOTAL) -> dict[int, int]:
    """Run the policy as the loop does; `movement(unit, step)`. Returns step → frozen units where that changes."""
    changes, frozen = {}, guided.frozen_units(0)
    for step in range(steps):
        if guided.is_probed(step):
            live = guided.frozen_units(step)
            guided.observe(step, [None if unit < live else movement(unit, step) for unit in range(UNITS)])
        if guided.frozen_units(step) != frozen:
            frozen = guided.frozen_units(step)
            changes[step] = frozen
    return changes


def still(*units: int, after: int = 50) -> Any:
    """Units that change as much as ever until `after`, and not at all from then on; the others always do."""
    return lambda unit, step: 0.0 if unit in units and step > after else 0.1


def test_a_unit_that_stops_changing_is_frozen_and_one_that_goes_on_is_not() -> None:
    # Measured at 60, 70, … as half, a quarter, an eighth of the most: below 0.3 at 70 and 80.
    assert drive(policy(), still(0)) == {84: 1}
    assert drive(policy(), still()) == {}


def test_only_the_head_of_the_live_prefix_is_frozen() -> None:
    assert drive(policy(), still(1, 2, 3)) == {}


def test_one_unit_at_a_measurement() -> None:
    assert drive(policy(), still(0, 1, 2)) == {84: 1, 94: 2, 104: 3}


def test_the_last_unit_never_freezes() -> None:
    assert list(drive(policy(), still(0, 1, 2, 3, 4)).values()) == [1, 2, 3, 4]


@pytest.mark.parametrize(("at_most", "expected"), [(0.79, 3), (0.6, 3), (0.59, 2), (0.1, 0)])
def test_no_more_than_a_share_of_the_units_freezes(at_most: float, expected: int) -> None:
    guided = policy(at_most=at_most)
    drive(guided, still(0, 1, 2, 3, 4))
    assert guided.frozen_units(TOTAL) == expected
    assert not any(guided.is_probed(step) for step in range(200, TOTAL)), "nothing is left to decide"


def test_nothing_is_measured_before_the_end_of_the_warm_up() -> None:
    assert [step for step in range(60) if policy().is_probed(step)] == [20, 30, 40, 50]
    # The first measurement has no reference, so two low ones in a row come at the earliest with the fourth.
    assert min(drive(policy(cool_down=0), lambda unit, step: 0.1 if step <= 30 else 0.0)) == 60


def test_it_takes_patience() -> None:
    assert drive(policy(patience=5), still(0)) == {114: 1}

    def restless(unit: int, step: int) -> float:  # two measurements of nothing, then a jump, again and again
        return 0.3 if step % 40 == 0 else 0.0

    assert drive(policy(patience=3), restless) == {}


def test_tolerance_is_relative_to_the_units_own_most() -> None:
    def fading(unit: int, step: int) -> float:
        return (unit + 1) * (0.1 if step <= 50 else 0.025)

    assert drive(policy(tolerance=0.2), fading) == {}
    assert drive(policy(tolerance=0.3), fading)


def test_the_rate_anneals_to_zero_between_choice_and_freeze() -> None:
    guided = policy(cool_down=8)
    drive(guided, still(0), steps=81)  # chosen at 80
    rates = [guided.learning_rates(step) for step in range(75, 90)]
    expected = [1.0] * 6 + [(1 + math.cos(math.pi * n / 8)) / 2 for n in range(1, 8)] + [None] * 2
    for rate, share in zip(rates, expected, strict=True):
        assert rate[0] == (None if share is None else pytest.approx(LR * share, rel=1e-12))
        assert rate[1:] == [LR] * 4


def test_without_a_cool_down_the_unit_freezes_at_once() -> None:
    assert drive(policy(cool_down=0), still(0)) == {80: 1}


def test_a_movement_that_fades_with_the_learning_rate_counts_as_stopping() -> None:
    guided = policy(min_lr=0.0)

    def as_the_rate(unit: int, step: int) -> float:
        return sum(guided.learning_rates(before)[-1] or 0.0 for before in range(step - 10, step))

    first = min(drive(guided, as_the_rate))
    assert (guided.learning_rates(first)[-1] or 0) < 0.3 * LR < (guided.learning_rates(first - 60)[-1] or 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_no_measurement(bad: float) -> None:
    guided = policy()
    drive(guided, lambda unit, step: bad if step in (70, 80, 90) else still(0)(unit, step))
    assert guided.frozen_units(104) == 0  # patience began anew at 100
    assert guided.frozen_units(114) == 1
    json.dumps(guided.state(), allow_nan=False)


def test_initial_units_count_among_the_frozen() -> None:
    assert drive(policy(initial_units=2), still(2)) == {84: 3}
    assert policy(initial_units=2).learning_rates(0)[:2] == [None, None]


@pytest.mark.parametrize("interrupted_at", [20, 21, 79, 80, 81, 83, 84, 100])
def test_a_policy_goes_on_from_its_state(interrupted_at: int) -> None:
    whole, first, second = policy(), policy(), policy()
    expected = drive(whole, still(0, 1, 2))
    done = drive(first, still(0, 1, 2), steps=interrupted_at)
    second.load_state(json.loads(json.dumps(first.state())))
    for step in range(interrupted_at, TOTAL):
        if second.is_probed(step):
            live = second.frozen_units(step)
            second.observe(step, [None if unit < live else still(0, 1, 2)(unit, step) for unit in range(UNITS)])
        assert second.learning_rates(step) == whole.learning_rates(step)
    assert second.state() == whole.state()
    assert set(done.items()) <= set(expected.items())


def test_what_is_reported_is_relative_to_the_most() -> None:
    guided = policy()
    assert guided.observe(20, [None] * UNITS) == [None] * UNITS
    assert guided.observe(30, [0.1, 0.2, 0.0, None, 0.1]) == [1.0, 1.0, None, None, 1.0]
    found = guided.observe(40, [0.05, 0.2, 0.0, None, 0.2])
    assert found[:2] == pytest.approx([0.75, 1.0])
