"""Whole small trainings with the options of the stages: the losses they train on and tell, and how they go on."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import RankPool
from tests.loop.going_on import ask_to_stop_after, state
from tests.loop.small_training import small_plan, small_training
from trainer.loop import DONE, STOPPED
from trainer.setup import choose_checkpoint
from trainer.storages import Storages
from trainer.tracking.metrics import read_metrics

STEPS = 18
START, END = [1.0, 0.5, 0.0, 1.0], [0.25, 2.0, 0.0, 3.0]
UNWEIGHTED = 2
"""The stage whose weight is 0 throughout."""
ZERO2 = {"zero_optimization": {"stage": 2}}
CHANGES: dict[str, dict[str, Any]] = {
    "train": {"epochs": 1, "micro_batch": 4},
    "checkpoint": {"every_steps": 0, "every_epochs": 0},
}


def steps_of(output: Path) -> list[dict[str, Any]]:
    return [event for event in read_metrics(output) if event["event"] == "step"]


def train_with_a_ramp(shards: Path, output: Path) -> dict[str, Any]:
    """The mean loss that each step trained on, and which parameters changed. Runs on a rank."""
    plan = small_plan(
        shards, output, ZERO2, model={"stage_weights": START, "stage_weights_end": END},
        optimizer={"weight_decay": 0.0}, freezing={"how": "steps", "steps": [7, 12]}, **CHANGES,
    )  # fmt: skip
    trained_on: dict[int, list[float]] = defaultdict(list)
    with small_training(plan) as training:
        losses = training._losses

        def noted(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
            loss, of_stages = losses(*args)
            trained_on[training.step].append(loss.item())
            return loss, of_stages

        training._losses = noted  # type: ignore[method-assign]
        before = {name: weight.detach().clone() for name, weight in training.model.named_parameters()}
        assert training.run() == DONE
        changed = {name for name, weight in training.model.named_parameters() if not torch.equal(weight, before[name])}
    assert all(len(micro_batches) == 2 for micro_batches in trained_on.values())
    return {"losses": [sum(each) / 2 for each in trained_on.values()], "before": set(before), "changed": changed}


def test_weights_that_change_over_a_run_weigh_what_it_trains_on_and_tells(
    one_rank: RankPool, shards: Path, tmp_path: Path
) -> None:
    (run,) = one_rank.run(train_with_a_ramp, shards, tmp_path)
    steps = steps_of(tmp_path)
    assert [event["step"] for event in steps] == list(range(1, STEPS + 1))
    for position, (event, trained_on) in enumerate(zip(steps, run["losses"], strict=True)):
        share = position / (STEPS - 1)
        weights = [(1 - share) * start + share * end for start, end in zip(START, END, strict=True)]
        live = [(w, loss) for w, loss in zip(weights, event["loss_stages"], strict=True) if loss is not None]
        assert len(live) == (4 if position < 12 else 3)
        assert all(loss > 0 for _, loss in live)
        assert event["loss"] == pytest.approx(sum(w * loss for w, loss in live))
        assert trained_on == pytest.approx(event["loss"], rel=1e-5)
    same = run["before"] - run["changed"]
    assert same == {name for name in run["before"] if name.startswith(f"stages.{UNWEIGHTED}.")} != set()


def train_on_every_block(shards: Path, output: Path, until: int | None) -> int:
    """Start a run whose stages are on every block and predict pixels, or go on with it. Runs on a rank."""
    plan = small_plan(
        shards, output, ZERO2, model={"depth": 6, "stages": "every", "target": "pixels"},
        freezing={"how": "steps", "steps": [6, 8, 13]}, **CHANGES,
    )  # fmt: skip
    with small_training(plan, choose_checkpoint(plan, "auto", Storages.shared())) as training:
        if until is not None:
            ask_to_stop_after(training, until)
        return training.run()


def test_every_block_predicting_pixels_goes_on_to_the_bit_after_a_freeze(
    one_rank: RankPool, shards: Path, tmp_path: Path
) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert one_rank.run(train_on_every_block, shards, whole, None) == [DONE]
    assert one_rank.run(train_on_every_block, shards, halved, 10) == [STOPPED]
    assert 10 <= steps_of(halved)[-1]["step"] < 13, "between the second freeze and the third"
    assert one_rank.run(train_on_every_block, shards, halved, None) == [DONE]

    ours, theirs = state(halved), state(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    fields = ("step", "loss", "loss_stages", "lr", "frozen_units")
    assert [[event[field] for field in fields] for event in steps_of(halved)] == [
        [event[field] for field in fields] for event in steps_of(whole)
    ]
    live = [sum(loss is not None for loss in event["loss_stages"]) for event in steps_of(whole)]
    assert live == [6] * 8 + [5] * 5 + [4] * 5
    assert len(theirs["master stages.5.decoder.predict.bias"]) == 3 * 4**2, "the pixels of a cell"
