"""Whole small fine-tunings on real ranks: they equal plain AdamW, and go on exactly where they stopped."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.distributed import RankPool
from tests.finetuning.small import EPOCH, OFF, by_step, small_plan, start
from tests.loop.going_on import KINDS, state
from trainer.data.loader import LaneLoader
from trainer.finetuning.plan import FinetunePlan
from trainer.loop import DONE, STOPPED
from trainer.pretrained import load_pretrained

SLOW = pytest.mark.slow
LARGE_EPS = {"optimizer": {"eps": 1e-5}}
"""A bias of the keys has a gradient of zero but for rounding, which AdamW would otherwise blow up to whole steps."""


@pytest.mark.parametrize(
    ("stage", "precision"),
    [pytest.param(1, "fp32", marks=SLOW), (2, "fp32"), (2, "bf16"), pytest.param(3, "fp32", marks=SLOW)],
)
def test_a_run_stopped_within_an_epoch_goes_on_to_the_bit(
    two_ranks: RankPool, split: Path, pretrained: Path, tmp_path: Path, stage: int, precision: str
) -> None:
    """With everything random on: RandAugment, erasing, mixup, cutmix, drop-path; and the moving average."""
    settings = {"stage": stage, "precision": precision, "train": {"epochs": 1.5}}
    settings |= {"finetune": {"average": 0.9, "drop_path": 0.5}}
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert two_ranks.run(start, split, pretrained, whole, None, settings) == [DONE] * 2
    assert two_ranks.run(start, split, pretrained, halved, 4, settings) == [STOPPED] * 2
    assert 4 <= max(by_step(halved, "step")) < EPOCH  # the ranks agree on a stop while a step is under way
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


def test_another_number_of_ranks_goes_on_to_rounding(
    two_ranks: RankPool, one_rank: RankPool, split: Path, pretrained: Path, tmp_path: Path
) -> None:
    """With the augmentation of each image and the moving average; what depends on the layout is off."""
    settings = {"augmentation": {"mixup": 0, "cutmix": 0}, "finetune": {"average": 0.9, "drop_path": 0}} | LARGE_EPS
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert two_ranks.run(start, split, pretrained, whole, None, settings) == [DONE] * 2
    assert two_ranks.run(start, split, pretrained, moved, 3, settings) == [STOPPED] * 2
    assert one_rank.run(start, split, pretrained, moved, None, settings | {"stage": 1}) == [DONE]
    ours, theirs = state(moved), state(whole)
    for key in theirs:
        assert torch.allclose(ours[key], theirs[key], rtol=1e-3, atol=2e-5), key


def rates(step: int, total: int, warmup: int) -> list[float]:
    """Of the four units of a ViT of two blocks at lr 2e-3, with a floor of 1e-6 and a decay of 0.75 a unit."""
    share = step / warmup if step < warmup else None
    cosine = (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
    head = 2e-3 * share if share is not None else 1e-6 + (2e-3 - 1e-6) * cosine
    return [head * 0.75 ** (3 - unit) for unit in range(4)]


def plain_training(plan: FinetunePlan, init: Path) -> dict[str, torch.Tensor]:
    """The same in one process without any of the engine: torch's AdamW, the whole batch at once."""
    torch.manual_seed(plan.recipe.train.seed)
    model = plan.new_model()
    model.load_encoder(load_pretrained(init))
    units: dict[int, list[tuple[str, torch.nn.Parameter]]] = {unit: [] for unit in range(4)}
    for name, parameter in model.named_parameters():
        units[int(name.split(".")[1]) + 1 if name.startswith("blocks") else 3 if "head" in name or "fc_norm" in name
              else 0].append((name, parameter))  # fmt: skip
    tokens = ("cls_token", "pos_embed")
    groups = [
        {"params": [p for n, p in named if (p.ndim > 1 and n not in tokens) == decayed], "unit": unit,
         "weight_decay": 0.05 if decayed else 0.0}
        for unit, named in units.items() for decayed in (True, False)
    ]  # fmt: skip
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=(0.9, 0.999), eps=1e-5)
    average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loader = LaneLoader(
        plan.index, plan.recipe.data, image_size=32, seed=0, global_batch=16, micro_batch=16, rank=0, world_size=1,
        end_step=plan.total_steps,
    )  # fmt: skip
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for step, batch in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = rates(step, plan.total_steps, 3)[group["unit"]]
        optimizer.zero_grad()
        F.cross_entropy(model((batch.images / 255 - mean) / std), batch.labels).backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            average[name].mul_(0.9).add_(parameter.detach(), alpha=0.1)
    weights = {f"master {name}": parameter.detach().flatten() for name, parameter in model.named_parameters()}
    return weights | {f"average {name}": values.flatten() for name, values in average.items()}


def test_two_ranks_equal_plain_adamw_with_a_rate_for_each_unit(
    two_ranks: RankPool, split: Path, pretrained: Path, tmp_path: Path
) -> None:
    settings = {"augmentation": OFF, "finetune": {"average": 0.9, "drop_path": 0}} | LARGE_EPS
    assert two_ranks.run(start, split, pretrained, tmp_path / "run", None, settings) == [DONE] * 2
    theirs = plain_training(small_plan(split, pretrained, tmp_path / "plain", **settings), pretrained)
    ours = {key: values for key, values in state(tmp_path / "run").items() if not key.startswith("exp")}
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert torch.allclose(ours[key], theirs[key], rtol=1e-3, atol=5e-6), key
    logged = by_step(tmp_path / "run", "step", "lr")
    assert logged[5][0] == pytest.approx(rates(4, EPOCH, 3))


def test_a_fine_tuned_run_is_a_start_as_well_without_its_head(
    one_rank: RankPool, split: Path, pretrained: Path, tmp_path: Path
) -> None:
    """And without an average or a validation neither is there."""
    settings: dict[str, Any] = {"finetune": {"average": None}, "validation": {"every_epochs": 0}}
    settings |= {"train": {"epochs": 0.5}, "optimizer": {"warmup_epochs": 0.1}}
    first, second = tmp_path / "first", tmp_path / "second"
    assert one_rank.run(start, split, pretrained, first, None, settings) == [DONE]
    assert not by_step(first, "evaluation")
    weights = state(first)
    assert not [key for key in weights if key.startswith("average")]

    settings |= {
        "finetune": {"average": None, "classes": 9},
        "optimizer": {"lr": 1e-30, "min_lr": 0, "warmup_epochs": 0.1},
    }
    assert one_rank.run(start, split, first, second, None, settings) == [DONE]
    for key, values in state(second).items():
        if key.startswith("master") and "head" not in key and "fc_norm" not in key:
            assert torch.equal(values, weights[key]), key
    assert len(state(second)["master head.bias"]) == 9
