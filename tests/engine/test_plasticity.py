"""Freezing by measurement on real ranks: what is measured, that all agree, and that runs go on exactly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed import RankPool
from tests.engine.cases import Setting
from tests.engine.guided import guided_by, movements, saved_weights, train

PLASTICITY = {"how": "plasticity", "probe_every": 3, "probe_images": 5, "tolerance": 0.9, "patience": 1, "cool_down": 2}
"""So tolerant that units freeze in a run of 26 steps."""
SLOW, EXHAUSTIVE = pytest.mark.slow, pytest.mark.exhaustive
SETTINGS = [Setting(1, "fp32"), Setting(2, "bf16"), Setting(3, "bf16")]


def zero(stage: int, **keys: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, "reduce_bucket_size": 5000, "overlap_comm": False} | keys}


@pytest.mark.parametrize("setting", [*SETTINGS, Setting(0, "fp32")], ids=str)
def test_movements_are_those_of_the_blocks_on_the_references_inputs(two_ranks: RankPool, setting: Setting) -> None:
    (told, expected), (others, _) = two_ranks.run(movements, setting)
    assert told == others
    assert told == pytest.approx(expected, rel=1e-5)
    assert told[2] == 0  # its rate was: what the blocks below it changed does not count
    assert all(value and value > 1e-4 for unit, value in enumerate(told) if unit != 2)


@pytest.mark.parametrize(
    "setting", [SETTINGS[0], *(pytest.param(setting, marks=SLOW) for setting in SETTINGS[1:])], ids=str
)
def test_blocks_that_stop_changing_are_frozen_on_all_ranks_and_others_are_not(
    two_ranks: RankPool, setting: Setting
) -> None:
    found, other = two_ranks.run(guided_by, setting, 2)
    assert (found["frozen"], found["state"], found["plasticity"]) == (
        other["frozen"], other["state"], other["plasticity"])  # fmt: skip
    # Nothing moves from 6 on. Measured at 8, 10, …: a half, a quarter, … of the mean before; below a tenth twice by 16.
    assert found["frozen"][-1] == 2
    assert found["frozen"] == sorted(found["frozen"])
    assert max(b - a for a, b in zip(found["frozen"], found["frozen"][1:], strict=False)) == 1
    assert found["reference"] == [f"unit_{unit}" for unit in range(found["frozen"][18] - 1, 5)]
    assert other["reference"] == []  # one copy, on rank 0
    moving, _ = two_ranks.run(guided_by, setting, 0)
    assert moving["frozen"] == [0] * 20
    assert all(value and value > 0.1 for values in moving["plasticity"].values() for value in values if value)


def freezes(found: dict[str, Any]) -> list[tuple[int, list[int]]]:
    return [(event["step"], event["units"]) for event in found["events"] if event["event"] == "freeze"]


def told(found: dict[str, Any], event: str, *keys: str) -> list[Any]:
    return [tuple(e[key] for key in ("step", *keys)) for e in found["events"] if e["event"] == event]


@pytest.mark.parametrize("stage", [pytest.param(1, marks=EXHAUSTIVE), 2, pytest.param(3, marks=SLOW)])
def test_a_run_goes_on_exactly_from_before_within_and_after_a_freeze(
    two_ranks: RankPool, shards: Path, tmp_path: Path, stage: int
) -> None:
    whole, other = two_ranks.run(train, shards, tmp_path / "whole", zero(stage), PLASTICITY, timeout=300)
    assert whole["state"] == other["state"]
    frozen = freezes(whole)
    assert len(frozen) >= 2, "the run is to freeze units"
    final = saved_weights(tmp_path / "whole")
    choice = whole["state"]["decided"][1]
    steps = (choice, choice + 1, choice + 3) if stage == 2 else (choice + 1,)
    for step in steps:  # just before unit 1 is chosen; while it cools down; after it froze
        output = tmp_path / f"from_{step}"
        again, _ = two_ranks.run(
            train, shards, output, zero(stage), PLASTICITY, (tmp_path / "whole", step), timeout=300
        )
        assert freezes(again) == frozen
        for event, keys in (("step", ("lr", "loss_stages")), ("probe", ("plasticity",))):
            assert told(again, event, *keys) == told(whole, event, *keys)
        assert again["state"] == whole["state"]
        weights = saved_weights(output)
        assert all(torch.equal(weights[name], final[name]) for name in final)


@SLOW
def test_a_run_goes_on_at_another_stage_and_world_size(
    two_ranks: RankPool, one_rank: RankPool, shards: Path, tmp_path: Path
) -> None:
    whole, _ = two_ranks.run(train, shards, tmp_path / "whole", zero(2), PLASTICITY, timeout=300)
    step = whole["state"]["decided"][0] + 1
    final = saved_weights(tmp_path / "whole")
    for pool, stage in ((two_ranks, 3), (one_rank, 1)):
        output = tmp_path / f"stage_{stage}"
        again = pool.run(train, shards, output, zero(stage), PLASTICITY, (tmp_path / "whole", step), timeout=300)[0]
        assert freezes(again) == freezes(whole)
        weights = saved_weights(output)
        for name in final:
            # a third of a qkv bias is the keys', whose true gradient is 0: AdamW blows up what rounding makes of it
            atol = 1e-3 if name.endswith("qkv.bias") else 1e-5
            torch.testing.assert_close(weights[name], final[name], rtol=1e-4, atol=atol)


@pytest.mark.parametrize("stage", [pytest.param(2, marks=EXHAUSTIVE), pytest.param(3, marks=SLOW)])
def test_measuring_changes_nothing_else(two_ranks: RankPool, shards: Path, tmp_path: Path, stage: int) -> None:
    never = PLASTICITY | {"patience": 1000}
    rare = {"checkpoint": {"every_steps": 0, "every_epochs": 0}, "train": {"epochs": 10 / 18, "global_batch": 8}}
    run = lambda name, freezing: two_ranks.run(run_without, shards, tmp_path / name, zero(stage), freezing, rare)[0]  # noqa: E731
    measured, plain = run("measured", never), run("plain", {"how": "none"})
    assert told(measured, "probe", "plasticity")
    assert told(measured, "step", "loss_stages", "lr") == told(plain, "step", "loss_stages", "lr")
    final = saved_weights(tmp_path / "plain")
    weights = saved_weights(tmp_path / "measured")
    assert all(torch.equal(weights[name], final[name]) for name in final)


def run_without(shards: Path, output: Path, ds_config: dict, freezing: dict, changes: dict) -> dict[str, Any]:
    return train(shards, output, ds_config, freezing, None, **changes)


@pytest.mark.parametrize("stage", [pytest.param(2, marks=SLOW), pytest.param(3, marks=EXHAUSTIVE)])
def test_initial_units_never_train_and_are_saved_exactly(
    two_ranks: RankPool, shards: Path, tmp_path: Path, stage: int
) -> None:
    ds_config = zero(stage) | {"bf16": {"enabled": True}}
    freezing = {"how": "none", "initial_units": 2}
    whole, _ = two_ranks.run(train, shards, tmp_path / "whole", ds_config, freezing, timeout=300)
    steps = [event for event in whole["events"] if event["event"] == "step"]
    assert {event["frozen_units"] for event in steps} == {2}
    assert all(event["lr"][:2] == [None, None] and event["loss_stages"][0] is None for event in steps)
    final = saved_weights(tmp_path / "whole")
    arrays, trained = two_ranks.run(initial_weights, tmp_path / "whole")[0]
    drawn = {name: torch.from_numpy(array) for name, array in arrays.items()}
    assert any((values.bfloat16().float() != values).any() for values in drawn.values()), "fp32, not rounded"
    assert all(torch.equal(final[name], values.flatten()) for name, values in drawn.items())
    assert steps[0]["trainable_parameters"] == trained
    # ZeRO-2 and 3 pad; each rank keeps its half of masters and moments, and nothing of the frozen units
    assert 12 * trained / 2 <= steps[0]["optimizer_bytes"] < 12 * trained / 2 + 2000
    again, _ = two_ranks.run(
        train, shards, tmp_path / "again", ds_config, freezing, (tmp_path / "whole", 10), timeout=300
    )
    assert told(again, "step", "loss_stages") == told(whole, "step", "loss_stages")
    weights = saved_weights(tmp_path / "again")
    assert all(torch.equal(weights[name], final[name]) for name in final)


def initial_weights(run: Path) -> tuple[dict[str, np.ndarray], int]:
    """The frozen parameters as the run's seed draws them, and how many scalars the others have. Arrays, since a rank
    cannot send tensors."""
    from trainer.model.localmim import LocalMIM
    from trainer.recipe import load_recipe

    recipe = load_recipe(str(run / "recipe.yaml"), [], run)
    torch.manual_seed(recipe.train.seed)
    model = LocalMIM(recipe.model)
    frozen = {name: p.detach().numpy() for name, p in model.named_parameters() if model.unit_of(name) < 2}
    return frozen, sum(p.numel() for name, p in model.named_parameters() if name not in frozen)
