"""Evaluation on the way leaves no trace in the training, and says what an evaluation of the checkpoint says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.distributed import RankPool
from tests.evaluation.online_case import EVERY, SAMPLES, STEPS, TRAIN_SAMPLES, train
from tests.launch.small_recipe import small_recipe
from trainer.data.shard_index import ShardIndex
from trainer.errors import BadInput
from trainer.evaluation.config import EvaluationConfig
from trainer.evaluation.encoder import Encoder
from trainer.evaluation.on_shards import Extraction, knn_on_shards
from trainer.evaluation.splits import Split
from trainer.plan import plan_run
from trainer.pretrained import build_vit, load_into, load_pretrained
from trainer.ranks import Ranks
from trainer.recipe import parse_recipe
from trainer.setup import FREE_TO_CHANGE
from trainer.tracking.metrics import read_metrics

TIMINGS = {
    "images_per_second",
    "step_seconds",
    "data_wait_seconds",
    "mfu",
    "memory_bytes",
    "seconds",
    "nodes",
    "stragglers",
}

STOP = 2 * EVERY + 2
"""After the first freeze."""


def without_timings(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in event.items() if key not in TIMINGS}
        for event in events
        if event["event"] in ("step", "freeze")
    ]


def evaluate_checkpoint(run: Path, shards: Path) -> list[dict[str, Any]]:
    pretrained = load_pretrained(run)
    assert pretrained.about["step"] == str(STEPS)
    vit = build_vit(pretrained.config, num_classes=0)
    load_into(vit, pretrained)
    index = ShardIndex.open(shards)
    extraction = Extraction(batch=16, workers=1, pools=["mean"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have
    try:
        return knn_on_shards(
            Encoder(vit),
            Split("training", index, TRAIN_SAMPLES),
            Split("held-out", index, SAMPLES),
            extraction,
            ks=[3, 10],
            temperatures=[0.07],
        )["results"]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("stage", "precision", "workers", "stop"),
    [
        pytest.param(0, "fp32", 1, None, marks=pytest.mark.slow),
        (2, "fp32", 0, None),
        pytest.param(2, "fp32", 0, STOP, marks=pytest.mark.slow),
        pytest.param(3, "fp32", 0, None, marks=pytest.mark.exhaustive),
        pytest.param(3, "bf16", 0, None, marks=pytest.mark.slow),
        pytest.param(3, "bf16", 1, STOP, marks=pytest.mark.exhaustive),
    ],
)
def test_a_training_through_freezes_is_bit_exact_with_and_without_evaluations(
    two_ranks: RankPool, shards: Path, tmp_path: Path, stage: int, precision: str, workers: int, stop: int | None
) -> None:
    """With `stop` the evaluated one is stopped between two evaluations and goes on; the other one never is."""
    settings = (stage, precision, workers)
    plain = two_ranks.run(train, shards, tmp_path / "plain", *settings, False, timeout=600)
    before: list[list[dict[str, Any]]] = [[], []]
    if stop is not None:
        stopped = two_ranks.run(train, shards, tmp_path / "evaluated", *settings, True, stop, timeout=600)
        before = [each["found"] for each in stopped]
        assert [each["step"] for each in before[0]] == [EVERY, 2 * EVERY]
    evaluated = two_ranks.run(train, shards, tmp_path / "evaluated", *settings, True, timeout=600)
    for without, with_them, earlier in zip(plain, evaluated, before, strict=True):
        assert without["weights"]
        for kind in ("state", "weights"):
            assert without[kind].keys() == with_them[kind].keys()
            for key, values in without[kind].items():
                np.testing.assert_array_equal(with_them[kind][key], values, err_msg=str(key))
        assert without["randoms"] == with_them["randoms"]
        found = earlier + with_them["found"]
        assert [each["step"] for each in found] == list(range(EVERY, STEPS + 1, EVERY))
        assert found[0]["frozen_units"] == 0
        assert found[-1]["frozen_units"] >= 3
        assert all(each["aside"] and each["untouched"] and each["marks"] for each in found)
        assert [each["closed"] for each in found] == [[True]] * len(found)
        assert without["found"] == []
    ours, theirs = read_metrics(tmp_path / "evaluated"), read_metrics(tmp_path / "plain")
    assert without_timings(ours) == without_timings(theirs)
    events = [event for event in ours if event["event"] == "evaluation"]
    assert [event["step"] for event in events] == list(range(EVERY, STEPS + 1, EVERY))
    assert evaluated[0]["found"][-1]["result"]["results"] == evaluated[1]["found"][-1]["result"]["results"]
    assert len({row["top1"] for event in events for row in event["results"]}) > 2, "the figures follow the weights"
    board = EventAccumulator(str(tmp_path / "evaluated" / "tensorboard")).Reload()
    assert [each.step for each in board.Scalars("evaluation/knn_mean_10_0.07_top1")] == [e["step"] for e in events]
    if precision == "fp32":
        assert evaluate_checkpoint(tmp_path / "evaluated", shards) == events[-1]["results"]


@pytest.mark.parametrize(
    ("evaluation", "data", "says"),
    [
        ({}, {}, r"no shard index at .*val\.json"),
        ({"path": "PAINTED"}, {}, "other classes than .*train.json: 5 and 6"),
        ({}, {"path": "SHARDS/train.json"}, "evaluation.path is empty and data.path is a file"),
        ({}, {"path": "pipe:cat x.tar", "samples": 100}, "evaluation: a pipe:"),
        ({"k": [5, 0]}, {}, "evaluation.k: want numbers above 0"),
        ({"temperature": []}, {}, "evaluation.temperature"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_by_the_plan(
    shards: Path, painted: Path, tmp_path: Path, evaluation: dict, data: dict, says: str
) -> None:
    places = {"PAINTED": str(painted), "SHARDS/train.json": str(shards / "train.json")}
    evaluation, data = (
        {key: places.get(value, value) if isinstance(value, str) else value for key, value in section.items()}
        for section in ({"every_epochs": 0.5} | evaluation, {"path": str(shards)} | data)
    )
    (tmp_path / "config.json").write_text("{}")
    tree = yaml.safe_load(small_recipe(evaluation=evaluation, data=data))
    with pytest.raises(BadInput, match=says):
        plan_run(parse_recipe(tree, "test"), tmp_path / "config.json", tmp_path / "run", Ranks(0, 0, 1, 1))


def test_the_sections_keys_may_change_when_a_run_goes_on() -> None:
    assert {f"evaluation.{key}" for key in EvaluationConfig.model_fields} <= FREE_TO_CHANGE
