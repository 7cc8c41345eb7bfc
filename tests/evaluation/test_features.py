"""Every sample's feature stands beside that sample's label, whoever computed it: the class is painted in the pixels."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from tests.distributed import RankPool, run_on_ranks
from tests.evaluation.painted import COLOURS, EDGES, painted_class
from tests.evaluation.small_encoder import CONFIG, small_encoder
from trainer.data.decode import decode_rgb
from trainer.data.evaluation import evenly_chosen
from trainer.data.reader import parse_sample, read_samples
from trainer.data.shard_index import ShardIndex
from trainer.errors import BadInput
from trainer.evaluation.encoder import Encoder
from trainer.evaluation.features import Features, _once_each, extract_features
from trainer.pretrained import build_vit


class ColourEncoder:
    """What `extract_features` asks of an encoder; the feature is the mean colour, from which the class shows."""

    device, image_size = torch.device("cpu"), 32

    def __call__(self, images: torch.Tensor) -> dict:
        return {"mean": images.float().mean((2, 3))}


class Rows(NamedTuple):
    """Features as a rank may send them."""

    by_pool: dict[str, np.ndarray]
    labels: list[int]
    samples: list[int]

    @classmethod
    def of(cls, found: Features) -> "Rows":
        pools = {pool: rows.numpy() for pool, rows in found.by_pool.items()}
        return cls(pools, found.labels.tolist(), found.samples.tolist())


def colours(shards: Path, split: str, batch: int, most: int | None) -> Rows:
    """Runs on a rank, or in this process."""
    index = ShardIndex.open(shards, split)
    chosen = evenly_chosen(index.num_samples, most)
    return Rows.of(extract_features(ColourEncoder(), index, batch=batch, pools=["mean"], chosen=chosen))


def assert_aligned(features: Rows, samples: list[int]) -> None:
    assert features.samples == samples
    shown = [painted_class(colour[:, None, None]) for colour in features.by_pool["mean"]]
    assert shown == features.labels
    assert len(set(shown)) == len(COLOURS)


@pytest.mark.parametrize(("split", "batch", "most"), [("train", 7, None), ("val", 16, None), ("train", 8, 33)])
def test_labels_belong_to_their_features_on_any_number_of_ranks(
    painted: Path, two_ranks: RankPool, split: str, batch: int, most: int | None
) -> None:
    samples = evenly_chosen(EDGES[split][-1], most).tolist()
    alone = colours(painted, split, batch, most)
    assert_aligned(alone, samples)
    for features in two_ranks.run(colours, painted, split, batch, most):
        assert_aligned(features, samples)
        np.testing.assert_array_equal(features.by_pool["mean"], alone.by_pool["mean"])


@pytest.mark.slow
def test_labels_belong_to_their_features_on_three_ranks(painted: Path) -> None:
    for features in run_on_ranks(colours, 3, painted, "val", 4, None):
        assert_aligned(features, list(range(35)))


def test_labels_are_shuffled_in_the_shards(painted: Path) -> None:
    labels = colours(painted, "train", 16, None).labels
    assert np.count_nonzero(np.diff(labels)) > 50, "sorted labels would hide a shift"


def features_of_a_vit(shards: Path) -> Rows:
    torch.set_num_threads(1)
    return Rows.of(extract_features(small_encoder(), ShardIndex.open(shards, "val"), batch=8))


def test_a_vit_gives_the_same_bits_on_any_number_of_ranks(painted: Path, two_ranks: RankPool) -> None:
    threads = torch.get_num_threads()
    try:
        alone = features_of_a_vit(painted)
    finally:
        torch.set_num_threads(threads)
    for features in two_ranks.run(features_of_a_vit, painted):
        for pool, rows in alone.by_pool.items():
            np.testing.assert_array_equal(features.by_pool[pool], rows)


def test_the_features_are_the_normed_class_token_and_the_mean_of_the_normed_patches(painted: Path) -> None:
    encoder = small_encoder()
    index = ShardIndex.open(painted, "val")
    pixels = decode_rgb(parse_sample(read_samples(index, np.array([5]))[0]).image)
    images = torch.from_numpy(pixels[:32, :32].copy()).permute(2, 0, 1)[None]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = ((images[0].permute(1, 2, 0) / 255 - mean) / std).permute(2, 0, 1)[None]
    vit = encoder.vit
    with torch.no_grad():
        patches = vit.patch_embed.proj(normalised).flatten(2).transpose(1, 2)
        tokens = torch.cat([vit.cls_token, patches], dim=1) + vit.pos_embed
        for block in vit.blocks:
            tokens = block(tokens)
        tokens = vit.norm(tokens)[0]
    found = encoder(images)
    torch.testing.assert_close(found["cls"][0], tokens[0])
    torch.testing.assert_close(found["mean"][0], tokens[1:].mean(0))


def test_a_vit_without_its_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="global_pool"):
        Encoder(build_vit(CONFIG, num_classes=0, global_pool="avg"))


@pytest.mark.parametrize(("ids", "wanted"), [([0, 1, 1], 3), ([0, 2], 3), ([0, 1, 2, 2], 3)])
def test_a_sample_that_came_twice_or_not_at_all_is_noticed(ids: list[int], wanted: int) -> None:
    with pytest.raises(RuntimeError, match="twice"):
        _once_each(torch.tensor(ids), torch.ones(len(ids), dtype=torch.bool), wanted)


def test_samples_without_a_label_are_refused(painted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.reader.parse_label", lambda content: -1)
    with pytest.raises(BadInput, match=r"35 samples have no class.*val-00000.tar"):
        colours(painted, "val", 16, None)
