"""The freeze schedule: equal to the published code's, jump-free where asked, refused where it makes no sense."""

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from trainer.errors import BadInput
from trainer.freezing.config import FreezingConfig
from trainer.freezing.schedule import FreezeSchedule, predicted_saving, saving
from trainer.model.config import ModelConfig
from trainer.model.flops import step_flops

GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
RECORDED: list[dict[str, Any]] = json.loads((GOLDEN_DIR / "freezeout_schedule.json").read_text())
# The recorded rates are rounded to 12 significant digits and more.
RELATIVE = 1e-10


def schedule(
    how: Any = "cubic", *, t0: float = 0.8, scale_lr: bool = True, warmup: Any = "uniform", **run: Any
) -> FreezeSchedule:
    config = FreezingConfig(how=how, t0=t0, scale_lr=scale_lr, warmup=warmup)
    run = {"depth": 12, "total_steps": 1000, "warmup_steps": 100, "lr": 1e-3, "min_lr": 1e-6} | run
    return FreezeSchedule(config, **run)


def recorded_run(case: dict[str, Any]) -> dict[str, Any]:
    steps = case["iters_per_epoch"]
    run = {"total_steps": case["epochs"] * steps, "warmup_steps": case["warmup_epochs"] * steps}
    return run | {key: case[key] for key in ("depth", "lr", "min_lr")}


def case_name(case: dict[str, Any]) -> str:
    return f"{case['how']}-{case['t0']}-{case['depth']}-{'scaled' if case['scale_lr'] else 'unscaled'}"


@pytest.mark.parametrize("case", RECORDED, ids=case_name)
def test_freeze_steps_and_rates_equal_the_published_ones(case: dict[str, Any]) -> None:
    ours = schedule(case["how"], t0=case["t0"], scale_lr=case["scale_lr"], **recorded_run(case))
    assert ours.freeze_steps() == [case["first_frozen_iteration"].get(str(unit)) for unit in range(ours.num_units)]
    for step in range(ours.total_steps):
        expected = [case["lr_by_layer"][str(unit)][step] for unit in range(ours.num_units)]
        frozen = sum(rate is None for rate in expected)
        rates = ours.learning_rates(step)
        assert ours.frozen_units(step) == frozen
        assert rates[:frozen] == expected[:frozen] == [None] * frozen
        assert rates[frozen:] == pytest.approx(expected[frozen:], rel=RELATIVE, abs=RELATIVE * case["lr"])


@pytest.mark.parametrize("case", RECORDED, ids=case_name)
def test_without_freezing_all_units_follow_the_plain_cosine(case: dict[str, Any]) -> None:
    plain = schedule("none", **recorded_run(case))
    assert plain.freeze_steps() == [None] * plain.num_units
    for step, expected in enumerate(case["lr_other"]):
        assert plain.learning_rates(step) == pytest.approx([expected] * plain.num_units, rel=RELATIVE)


@pytest.mark.parametrize("how", ["linear", "squared", "cubic"])
def test_frozen_units_are_a_growing_prefix(how: str) -> None:
    ours = schedule(how, t0=0.5)
    counts = [ours.frozen_units(step) for step in range(ours.total_steps)]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == 12  # the last unit trains to the end
    for step in (0, 300, 600, 999):
        rates = ours.learning_rates(step)
        assert [rate is None for rate in rates] == [unit < counts[step] for unit in range(13)]


def test_share_of_unit_0() -> None:
    assert [schedule(how).freeze_steps()[0] for how in ("linear", "squared", "cubic")] == [
        100 + 720 + 1,
        100 + 576 + 1,
        100 + 460 + 1,  # 0.512 · 900 = 460.8
    ]


def test_several_units_may_freeze_at_one_step() -> None:
    short = schedule(total_steps=14, warmup_steps=2)
    jumps = [short.frozen_units(step) - short.frozen_units(step - 1) for step in range(1, 14)]
    assert max(jumps) > 1
    assert sum(jumps) == short.frozen_units(13) == sum(step is not None for step in short.freeze_steps())


@pytest.mark.parametrize("how", ["linear", "squared", "cubic"])
@pytest.mark.parametrize("t0", [0.1, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("total_steps", [1, 2, 7, 97])
def test_last_unit_never_freezes(how: str, t0: float, total_steps: int) -> None:
    ours = schedule(how, t0=t0, total_steps=total_steps, warmup_steps=0)
    assert ours.freeze_steps()[-1] is None
    assert ours.frozen_units(total_steps) <= 12
    if t0 == 1.0:
        assert ours.freeze_steps() == [None] * 13


def test_uniform_warmup_jumps_and_per_unit_warmup_does_not() -> None:
    def largest_rise(warmup: str) -> float:
        ours = schedule(warmup=warmup)
        rates = [ours.learning_rates(step)[0] or 0.0 for step in range(102)]
        return max(after - before for before, after in pairwise(rates)) * 1e3

    assert largest_rise("uniform") == pytest.approx(1 / 0.512 - 0.99)  # from 99 % of lr to lr / ratio
    assert largest_rise("per_unit") == pytest.approx(1 / 0.512 / 100)


def test_per_unit_warmup_ends_at_the_same_rates() -> None:
    uniform, per_unit = schedule(), schedule(warmup="per_unit")
    for step in (100, 400, 800):
        assert uniform.learning_rates(step) == per_unit.learning_rates(step)


def test_min_lr_is_the_floor_of_the_plain_cosine_only() -> None:
    plain, freezing = schedule("none", min_lr=1e-4), schedule(min_lr=1e-4)
    assert plain.learning_rates(1000)[12] == pytest.approx(1e-4)
    assert freezing.learning_rates(1000)[12] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": 1000}, "optimizer.warmup_epochs"),
        ({"warmup_steps": -1}, "optimizer.warmup_epochs"),
        ({"total_steps": 0, "warmup_steps": 0}, "a run of 0 steps"),
        ({"lr": 0.0}, "optimizer.lr"),
        ({"lr": float("nan")}, "optimizer.lr"),
        ({"min_lr": 2e-3}, "optimizer.min_lr"),
        ({"min_lr": -1e-6}, "optimizer.min_lr"),
        ({"depth": 0}, "at least one block"),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        schedule(**options)


@pytest.mark.parametrize("options", [{"t0": 0.0}, {"t0": 1.2}, {"how": "quartic"}, {"warmup": "none"}])
def test_nonsense_in_the_recipe_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        FreezingConfig(**options)


@pytest.mark.parametrize(
    ("size", "t0", "warmup_epochs", "expected"),
    [("base", 0.8, 10, 0.156), ("large", 0.8, 5, 0.164), ("base", 0.5, 10, 0.317), ("large", 0.5, 5, 0.332)],
)
def test_predicted_saving_of_a_hundred_epochs(size: Any, t0: float, warmup_epochs: int, expected: float) -> None:
    model = ModelConfig(size=size)
    run = {"depth": model.num_blocks, "total_steps": 100 * 625, "warmup_steps": warmup_epochs * 625}
    assert predicted_saving(schedule(t0=t0, **run), model) == pytest.approx(expected, abs=5e-4)


def test_saving_weighs_the_cost_of_each_count_with_its_steps() -> None:
    """Unit 0 freezes at 10 + 50 + 1, unit 1 at 10 + 75 + 1, the last never."""
    linear = schedule("linear", t0=0.5, depth=2, total_steps=110, warmup_steps=10)
    assert linear.freeze_steps() == [61, 86, None]
    assert saving(linear, [2.0, 1.2, 0.4]) == pytest.approx(1 - (61 * 2.0 + 25 * 1.2 + 24 * 0.4) / (110 * 2.0))


def test_predicted_saving_is_the_sum_over_steps() -> None:
    ours, model = schedule(total_steps=50, warmup_steps=5), ModelConfig()
    spent = sum(step_flops(model, ours.frozen_units(step)).total for step in range(50))
    assert predicted_saving(ours, model) == pytest.approx(1 - spent / (50 * step_flops(model, 0).total), rel=1e-12)
    assert predicted_saving(schedule("none"), model) == 0
    with pytest.raises(ValueError, match="schedule for 12 blocks, model of 24"):
        predicted_saving(schedule(), ModelConfig(size="large"))
