"""Held-out labels that no training sample can teach are refused, whichever of the two indexes names its classes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.small_encoder import small_encoder
from trainer.data.shard_index import ShardIndex
from trainer.errors import BadInput
from trainer.evaluation.on_shards import Extraction, knn_on_shards, linear_on_shards
from trainer.evaluation.probe import ProbeSettings
from trainer.evaluation.splits import Split


def measured(
    method: str, train: ShardIndex, held_out: ShardIndex, most: int | None = None, num_classes: int | None = 5
) -> dict[str, Any]:
    splits = Split("training", train, most), Split("held-out", held_out)
    extraction = Extraction(batch=16, workers=0, pools=["mean"], say=lambda line: None)
    if method == "knn":
        return knn_on_shards(small_encoder(), *splits, extraction, ks=[5], temperatures=[0.07])
    settings = ProbeSettings(epochs=1, warmup_epochs=0, global_batch=20, rates=[1.0], pools=["mean"])
    cached = method == "cached"
    return linear_on_shards(small_encoder(), *splits, extraction, settings, cached=cached, num_classes=num_classes)


@pytest.fixture
def five(painted: Path) -> ShardIndex:
    """To train on."""
    return ShardIndex.open(painted, "train")


@pytest.fixture
def six(shards: Path) -> ShardIndex:
    """Held out, of a class more."""
    return ShardIndex.open(shards, "train")


@pytest.mark.parametrize("named", ["training", "held-out", "neither"])
@pytest.mark.parametrize("method", ["knn", "cached", "augmented"])
def test_a_label_beyond_the_trainings_is_refused(method: str, named: str, five: ShardIndex, six: ShardIndex) -> None:
    train = five if named == "training" else replace(five, classes=None)
    held_out = six if named == "held-out" else replace(six, classes=None)
    with pytest.raises(BadInput, match="held-out samples have labels that the training shards have not") as refused:
        measured(method, train, held_out)
    message = str(refused.value)
    assert f".tar in {six.name}, with label 5 where {five.name} has the classes 0 to 4: convert both" in message
    assert "\n" not in message


@pytest.mark.parametrize("method", ["knn", "cached", "augmented"])
def test_labels_within_the_trainings_need_no_names(method: str, five: ShardIndex, painted: Path) -> None:
    nameless = replace(ShardIndex.open(painted, "val"), classes=None)
    for train in (five, replace(five, classes=None)):
        assert measured(method, train, nameless)["classes"] == 5


def test_of_a_part_of_the_training_samples_it_is_not_known_what_they_lack(five: ShardIndex, six: ShardIndex) -> None:
    nameless = replace(five, classes=None), replace(six, classes=None)
    assert measured("knn", *nameless, most=30)["train_samples"] == 30


def test_names_of_held_out_classes_do_not_say_what_the_training_samples_have(five: ShardIndex, six: ShardIndex) -> None:
    with pytest.raises(BadInput, match=r"train.json does not name its classes: say how many there are"):
        measured("augmented", replace(five, classes=None), six, num_classes=None)
