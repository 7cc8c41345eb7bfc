"""Held-out and training shards of the same six photographs, and weights to start from."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoint.tensors import write_by_hand
from tests.finetuning.small import PRETRAINED
from trainer.data.shard_index import ShardIndex, write_index
from trainer.model.localmim import LocalMIM

HELD_OUT = 2
"""Of the six shards of the tests: those with 8 and 45 of the 150 photographs."""


@pytest.fixture(scope="session")
def split(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """train.json with 97 samples and val.json with the other 53, of the same six classes."""
    directory = tmp_path_factory.mktemp("split")
    for tar in shards.glob("*.tar"):
        shutil.copy(tar, directory)
    whole = ShardIndex.open(shards)
    cut = len(whole.shards) - HELD_OUT
    samples = int(whole.shard_lengths[:cut].sum())
    for name, part, rows in (("train", slice(cut), slice(samples)), ("val", slice(cut, None), slice(samples, None))):
        write_index(directory, name, list(whole.shards[part]), np.array(whole.offsets[rows]), whole.classes, {})
    return directory


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of a LocalMIM that has learnt nothing."""
    directory = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(1)
    weights = {name: parameter.detach() for name, parameter in LocalMIM(PRETRAINED).named_parameters()}
    write_by_hand(directory / "checkpoints", 5, weights, recipe={"model": PRETRAINED.model_dump(mode="json")})
    return directory
