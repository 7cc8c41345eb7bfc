"""timm, webdataset and wids read the same directory as it is."""

import tarfile
import warnings
from pathlib import Path

import pytest
import webdataset
import wids
from timm.data import create_dataset

from trainer.data.reader import parse_sample, read_samples
from trainer.data.shard_index import ShardIndex


@pytest.fixture(scope="module")
def labels(shards) -> dict[str, int]:
    index = ShardIndex.open(shards)
    samples = (parse_sample(raw) for raw in read_samples(index, range(index.num_samples)))
    return {sample.key: sample.label for sample in samples}


def test_webdataset_reads_the_shards(shards: Path, labels: dict[str, int]):
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")
    assert {sample["__key__"]: sample["cls"] for sample in dataset} == labels


def test_shards_are_byte_for_byte_what_webdataset_would_write(shards: Path, tmp_path: Path):
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    for url in urls:
        with webdataset.TarWriter(
            str(tmp_path / "theirs.tar"), user="", group="", mtime=0, encoder=False, format=tarfile.USTAR_FORMAT
        ) as writer:
            for sample in webdataset.WebDataset([url], shardshuffle=False):
                writer.write({name: sample[name] for name in ("__key__", "cls", "jpg", "json")})
        assert (tmp_path / "theirs.tar").read_bytes() == Path(url).read_bytes()


def test_timm_reads_the_directory(shards: Path, labels: dict[str, int]):
    dataset = create_dataset("wds/", root=str(shards), split="train", is_training=False)
    with warnings.catch_warnings(action="ignore"):
        targets = [target for image, target in dataset if image.mode == "RGB"]
    assert len(dataset) == 150
    assert sorted(targets) == sorted(labels.values())


def test_wids_reads_the_index(shards: Path, labels: dict[str, int]):
    dataset = wids.ShardListDataset(str(shards / "train.json"), cache_dir=str(shards), base=str(shards))
    assert len(dataset) == 150
    read = {dataset[number]["__key__"]: int(dataset[number][".cls"]) for number in range(150)}
    assert read == labels
