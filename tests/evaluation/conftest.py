"""Painted shards, and a run on them that went through its freezes."""

from pathlib import Path

import pytest
import torch

from tests.checkpoint.tensors import write_by_hand
from tests.evaluation.painted import write_painted_shards
from tests.evaluation.small_encoder import CONFIG
from trainer.model.localmim import LocalMIM


@pytest.fixture(scope="session")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards in uneven tars: train (100 samples, 5 classes) and val (35)."""
    directory = tmp_path_factory.mktemp("painted")
    write_painted_shards(directory, tmp_path_factory.mktemp("scratch"))
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with one checkpoint, of an untrained model, and its metrics so far."""
    torch.manual_seed(0)
    weights = {name: parameter.detach() for name, parameter in LocalMIM(CONFIG).named_parameters()}
    recipe = {"model": CONFIG.model_dump(mode="json"), "train": {"seed": 0}}
    write_by_hand(tmp_path / "run" / "checkpoints", 30, weights, frozen_units=2, recipe=recipe)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"event": "start", "step": 0}\n{"event": "step", "step": 30}\n')
    return tmp_path / "run"
