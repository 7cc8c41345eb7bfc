"""timm, webdataset, wids and open_clip read the same directory as it is, whether the converter or `index` wrote its
index."""

import sys
import tarfile
import types
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
import wids
from timm.data import create_dataset

from data_tools.__main__ import main
from tests.data_tools.foreign_shards import by_img2dataset, by_timm
from trainer.data.reader import parse_sample, read_samples
from trainer.data.shard_index import ShardIndex


@pytest.fixture(scope="module")
def labels(shards) -> dict[str, int]:
    index = ShardIndex.open(shards)
    samples = (parse_sample(raw) for raw in read_samples(index, np.arange(index.num_samples)))
    return {sample.key: sample.label for sample in samples}


@pytest.fixture(scope="module")
def open_clip_data() -> Any:
    """open_clip's own data module. It wants webdataset 0.2.86 or older: newer ones mark the end of every shard, which
    its grouping stage does not know, so the mark is turned off. It imports pandas for its CSV reader, which nothing
    here calls."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("pandas") is None:
            patch.setitem(sys.modules, "pandas", types.ModuleType("pandas"))
        import open_clip_train.data

        without_marks = partial(webdataset.tariterators.tar_file_expander, eof_value=None)
        patch.setattr(open_clip_train.data, "tar_file_expander", without_marks)
        yield open_clip_train.data


def open_clip_arguments(shards: str) -> SimpleNamespace:
    """What open_clip's command line would hold."""
    return SimpleNamespace(
        train_data=shards, val_data=shards, train_num_samples=None, val_num_samples=None, seed=0, workers=0,
        world_size=1, batch_size=4, dataset_resampled=False, train_data_upsampling_factors=None,
    )  # fmt: skip


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


@pytest.mark.parametrize("elsewhere", [False, True], ids=["beside", "elsewhere"])
def test_timm_and_wids_read_what_index_wrote(elsewhere: bool, tmp_path: Path):
    (tmp_path / "shards").mkdir()
    by_timm(tmp_path / "shards")
    root = tmp_path / ("index" if elsewhere else "shards")
    for split in ("train", "validation"):
        pattern = tmp_path / "shards" / f"imagenet1k-{split}-*.tar"
        assert main(["index", str(pattern), "--split", split, "--output", str(root), "--workers", "1"]) == 0
        dataset = create_dataset("wds/", root=str(root), split=split, is_training=False)
        with warnings.catch_warnings(action="ignore"):
            assert sorted(target for _, target in dataset) == sorted([*range(6)] * 2)
    read = wids.ShardListDataset(str(root / "train.json"), cache_dir=str(tmp_path / "shards"), base=str(root))
    assert len({read[number]["__key__"] for number in range(12)}) == 12


def test_the_stages_of_open_clip_read_every_sample(shards: Path, labels: dict[str, int], open_clip_data: Any):
    """The size, and the stages of its training pipeline up to the captions, which images with class numbers lack."""
    urls = str(shards / "train-{00000..00005}.tar")
    assert open_clip_data.get_dataset_size(urls) == (150, 6)
    dataset = webdataset.DataPipeline(
        webdataset.SimpleShardList(urls),
        open_clip_data.detshuffle2(bufsize=2000, initial=500, seed=0, epoch=open_clip_data.SharedEpoch(0)),
        webdataset.split_by_node,
        webdataset.split_by_worker,
        open_clip_data.tarfile_to_samples_nothrow,
        webdataset.decode("pilrgb", handler=webdataset.reraise_exception),
        webdataset.rename(image="jpg;png;jpeg;webp", label="cls"),
    )
    assert {sample["__key__"]: sample["label"] for sample in dataset if sample["image"].mode == "RGB"} == labels
    (url,) = open_clip_data.ResampledShards2(urls, nshards=1, deterministic=True)
    assert url["url"] in open_clip_data.expand_urls(urls)[0]


def test_open_clip_passes_over_samples_without_captions(shards: Path, open_clip_data: Any):
    """Its whole pipeline wants image and text: of shards for classification it keeps nothing. That is its filter, not
    the files."""
    arguments = open_clip_arguments(str(shards / "train-{00000..00005}.tar"))
    data = open_clip_data.get_wds_dataset(arguments, np.array, is_train=False, tokenizer=len)
    assert list(data.dataloader) == []


def test_open_clip_trains_on_captioned_shards_with_the_size_that_index_wrote(tmp_path: Path, open_clip_data: Any):
    by_img2dataset(tmp_path)
    assert main(["index", str(tmp_path), "--workers", "1"]) == 0
    data = open_clip_data.get_wds_dataset(
        open_clip_arguments(str(tmp_path / "{00000..00001}.tar")),
        lambda image: torch.from_numpy(np.array(image)),
        is_train=True,
        tokenizer=lambda text: torch.tensor([[len(text)]]),
    )
    batches = list(data.dataloader)
    assert data.dataloader.num_samples == 12
    assert [tuple(images.shape) for images, _ in batches] == [(4, 72, 96, 3)] * 3
    assert all((texts == len("a photograph")).all() for _, texts in batches)
