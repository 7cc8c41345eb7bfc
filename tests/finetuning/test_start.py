"""The weights that a fine-tuning begins with: the source's, in fp32 also where the engine trains rounded ones."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.distributed import RankPool
from tests.finetuning.small import PRETRAINED, small_finetuning
from tests.pretrained.models import expected_encoder, mae_names, scrambled, write_run
from trainer.errors import BadInput
from trainer.model.config import EncoderConfig, ModelConfig
from trainer.model.localmim import LocalMIM
from trainer.pretrained import load_pretrained
from trainer.pretrained.export import write_timm
from trainer.pretrained.localmim_names import to_published

Parts = list[tuple[str, int, np.ndarray, np.ndarray]]


def our_run(folder: Path) -> tuple[Path, LocalMIM]:
    return folder / "run", write_run(folder / "run", PRETRAINED)


def our_timm_export(folder: Path) -> tuple[Path, LocalMIM]:
    run, model = our_run(folder)
    write_timm(load_pretrained(run), folder / "encoder.safetensors")
    return folder / "encoder.safetensors", model


def maes_file(folder: Path) -> tuple[Path, LocalMIM]:
    model = scrambled(PRETRAINED)
    torch.save({"model": mae_names(model)}, folder / "mae.pth")
    return folder / "mae.pth", model


def localmims_file(folder: Path) -> tuple[Path, LocalMIM]:
    """Of a standard size: a fine-tuning's recipe does not say which decoders there were."""
    model = scrambled(ModelConfig(size="tiny", image_size=32))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    torch.save({"model": to_published(model.config, weights)}, folder / "localmim.pth")
    return folder / "localmim.pth", model


def first_state(data: Path, init: Path, output: Path, settings: dict[str, Any]) -> Parts:
    """Name, start, master and average of every part that this rank owns before the first step. Runs on a rank, which
    cannot send tensors."""
    with small_finetuning(data, init, output, **settings) as training:
        return [
            (part.name, part.start, part.master.numpy().copy(), part.moments["average"].numpy().copy())
            for part in training.engine.fragments(owned_only=True)
        ]


@pytest.mark.parametrize(
    ("source", "stage", "precision", "pooling"),
    [
        (our_run, 2, "bf16", "mean"),
        (our_run, 3, "bf16", "token"),
        (our_run, 0, "bf16", "mean"),
        (our_run, 1, "bf16", "mean"),
        (our_timm_export, 2, "fp32", "token"),
        (maes_file, 2, "bf16", "token"),
        (localmims_file, 3, "bf16", "mean"),
    ],
)
def test_masters_and_averages_begin_as_the_sources_fp32_weights_to_the_bit(
    two_ranks: RankPool,
    split: Path,
    tmp_path: Path,
    source: Callable[[Path], tuple[Path, LocalMIM]],
    stage: int,
    precision: str,
    pooling: str,
) -> None:
    init, model = source(tmp_path)
    settings = {"stage": stage, "precision": precision, "finetune": {"average": 0.9, "pooling": pooling}}
    settings["model"] = model.config.model_dump(include=set(EncoderConfig.model_fields))
    parts = two_ranks.run(first_state, split, init, tmp_path / "out", settings)
    expected = {name: weight.flatten() for name, weight in expected_encoder(model).items()}
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in expected.values())
    if pooling == "mean":  # which has a norm of its own
        del expected["norm.weight"], expected["norm.bias"]
    seen = dict.fromkeys(expected, 0)
    for name, first, master, average in (part for of_rank in parts for part in of_rank):
        assert np.array_equal(average, master), name
        if name in expected:
            assert torch.equal(torch.from_numpy(master), expected[name][first : first + len(master)]), name
            seen[name] += len(master)
    assert seen == {name: len(weight) for name, weight in expected.items()}


def refusal(data: Path, inits: list[Path], output: Path) -> str:
    """What a rank says that was given the source of its own. Runs on a rank."""
    try:
        with small_finetuning(data, inits[dist.get_rank()], output):
            return "started"
    except BadInput as error:
        return str(error)


def test_ranks_that_read_different_weights_are_refused(two_ranks: RankPool, split: Path, tmp_path: Path) -> None:
    inits = [tmp_path / "one.pth", tmp_path / "other.pth"]
    for seed, path in enumerate(inits):
        torch.save(mae_names(scrambled(PRETRAINED, seed)), path)
    for said in two_ranks.run(refusal, split, inits, tmp_path / "out"):
        assert re.search(r"rank 1 read other weights \(.*other.pth\) than rank 0 \(.*one.pth\)", said), said
    assert not (tmp_path / "out" / "recipe.yaml").exists()
