"""Whole small fine-tunings on real ranks: they learn, equal plain AdamW, and go on exactly where they stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import RankPool
from tests.finetuning.small import KINDS, run_small, state
from trainer.loop import DONE, STOPPED
from trainer.tracking.metrics import read_metrics

EPOCH = 6
"""Steps: 97 images in batches of 16."""


def start(data: Path, init: Path, output: Path, until: int | None, settings: dict[str, Any]) -> int:
    return run_small(data, init, output, until, **settings)


def by_step(output: Path, event: str, *fields: str) -> dict[int, list[Any]]:
    return {e["step"]: [e[field] for field in fields] for e in read_metrics(output) if e["event"] == event}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_run_stopped_within_an_epoch_goes_on_to_the_bit(
    two_ranks: RankPool, split: Path, pretrained: Path, tmp_path: Path, stage: int
) -> None:
    """With everything random on: RandAugment, erasing, mixup, cutmix, drop-path; and the moving average."""
    settings = {"stage": stage, "train": {"epochs": 1.5}, "finetune": {"average": 0.9, "drop_path": 0.5}}
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert two_ranks.run(start, split, pretrained, whole, None, settings) == [DONE] * 2
    assert two_ranks.run(start, split, pretrained, halved, 4, settings) == [STOPPED] * 2
    assert max(by_step(halved, "step")) == 4
    assert two_ranks.run(start, split, pretrained, halved, None, settings) == [DONE] * 2

    ours, theirs = state(halved), state(whole)
    assert ours.keys() == theirs.keys()
    assert {key.split()[0] for key in ours} == set(KINDS)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for event, fields in {"step": ["loss", "lr"], "evaluation": ["top1", "top5", "loss", "average_loss"]}.items():
        assert by_step(halved, event, *fields) == by_step(whole, event, *fields)
    assert list(by_step(whole, "evaluation")) == [EPOCH, 9]
    changed = [key for key in theirs if key.startswith("master") and not torch.equal(
        theirs[key], theirs[key.replace("master", "average")])]  # fmt: skip
    assert changed, "an average that is the weights shows nothing"
