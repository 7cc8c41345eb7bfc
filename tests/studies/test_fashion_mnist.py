"""Fashion-MNIST becomes shards with its own labels, or one line says what is missing."""

import numpy as np
import pytest

from studies.fashion_mnist import make_shards, read_idx
from tests.studies.conftest import IMAGES
from trainer.data.decode import decode_rgb
from trainer.data.reader import parse_sample, read_samples
from trainer.data.shard_index import ShardIndex
from trainer.data.storage import Storage
from trainer.errors import BadInput


def test_shards_hold_the_images_with_their_labels(package, tmp_path):
    folder = make_shards(tmp_path / "shards")
    (images,) = package.rglob("t10k-images*")
    (labels,) = package.rglob("t10k-labels*")
    pixels, classes = read_idx(images), read_idx(labels)
    index = ShardIndex.open(folder / "validation.json")
    assert index.num_samples == IMAGES["t10k"] == len(pixels)
    assert index.classes is not None
    assert index.classes[0] == "0_t_shirt"
    found = [parse_sample(raw) for raw in read_samples(index, np.arange(index.num_samples), Storage())]
    difference = [
        (np.abs(decode_rgb(sample.image)[:, :, 0].astype(int) - pixels).mean(axis=(1, 2))) for sample in found
    ]
    nearest = [int(row.argmin()) for row in difference]
    assert sorted(nearest) == list(range(len(pixels)))
    assert [sample.label for sample in found] == [classes[number] for number in nearest]
    assert ShardIndex.open(folder / "train.json").num_samples == IMAGES["train"]


def test_shards_that_are_there_are_kept(package, tmp_path):
    folder = make_shards(tmp_path / "shards", limit=40)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert ShardIndex.open(folder / "train.json").num_samples == 40
    assert make_shards(tmp_path / "shards") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_what_cannot_be_fetched_is_named_with_the_place_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BadInput, match=r"dataset-fashion-mnist; unpack that as .*cache/localmim-freeze/studies"):
        make_shards(tmp_path / "shards")


def test_a_file_that_is_no_idx_is_refused(package, tmp_path):
    (images,) = package.rglob("train-images*")
    (labels,) = package.rglob("train-labels*")
    images.write_bytes(b"no gzip at all")
    with pytest.raises(BadInput, match="no gzipped IDX file"):
        make_shards(tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
    assert read_idx(labels).shape == (IMAGES["train"],)
