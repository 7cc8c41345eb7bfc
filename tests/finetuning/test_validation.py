"""Accuracy on held-out images: it is of the weights that a checkpoint holds, in the training's precision, and exact."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.distributed import RankPool
from tests.finetuning.small import EPOCH, by_step, small_plan, start
from tests.loop.going_on import state
from trainer.data.evaluation import centre_view
from trainer.data.reader import parse_sample, read_samples
from trainer.finetuning.mixing import normalised
from trainer.loop import DONE, PRECISIONS


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_it_learns_held_out_photographs_and_counts_them_exactly(
    two_ranks: RankPool, split: Path, pretrained: Path, tmp_path: Path, precision: str
) -> None:
    settings = {
        "precision": precision,
        "train": {"epochs": 16},
        "validation": {"every_epochs": 8},
        "optimizer": {"lr": 3e-3},
    }
    settings |= {"augmentation": {"mixup": 0, "cutmix": 0, "rand_augment": None}}
    run = tmp_path / "run"
    assert two_ranks.run(start, split, pretrained, run, None, settings) == [DONE] * 2
    measured = by_step(run, "evaluation", "top1", "top5", "loss", "images", "average_top1", "average_top5")
    assert list(measured) == [8 * EPOCH, 16 * EPOCH]
    assert measured[16 * EPOCH][0] > 0.5, "chance is one in six"

    plan = small_plan(split, pretrained, tmp_path / "again", **settings)
    assert plan.validation is not None
    samples = [parse_sample(raw) for raw in read_samples(plan.validation, np.arange(plan.validation.num_samples))]
    views = [normalised(centre_view(sample, 32)[None]) for sample in samples]
    dtype = PRECISIONS[precision]
    found: list[float] = []
    for kind in ("master", "average"):
        model = plan.new_model().eval().to(dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state(run)[f"{kind} {name}"].view_as(parameter))
            logits = torch.cat([model(view.to(dtype)).float() for view in views])
        labels = torch.tensor([sample.label for sample in samples])
        above = (logits > logits.gather(1, labels[:, None])).sum(1)
        loss = F.cross_entropy(logits, labels).item()
        shares = [(above < k).sum().item() / len(labels) for k in (1, 5)]
        found += [*shares, loss, len(labels)] if kind == "master" else shares
    # bf16 rounds otherwise in other batches: the loss a little, and an image at most may change sides
    assert measured[16 * EPOCH] == pytest.approx(found, rel=1e-4 if precision == "fp32" else 0.025)
