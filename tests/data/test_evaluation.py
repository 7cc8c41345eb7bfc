"""Evaluation sees every sample once, on any number of ranks, in equally many batches."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from trainer.data.decode import decode_rgb
from trainer.data.evaluation import evaluation_batches, evaluation_samples, evenly_chosen
from trainer.data.reader import parse_sample, read_samples
from trainer.data.shard_index import ShardIndex
from trainer.data.storage import Storage


@pytest.mark.parametrize(
    ("num_samples", "batch", "world_size"),
    [(10, 4, 3), (12, 4, 3), (2, 4, 3), (13, 4, 3), (150, 7, 4), (1, 1, 1), (1, 2, 8)],
)
def test_every_sample_is_valid_once_and_all_ranks_have_as_many_batches(num_samples, batch, world_size):
    valid, lengths = [], set()
    for rank in range(world_size):
        ids, num_valid = evaluation_samples(num_samples, batch, rank, world_size)
        valid += ids[:num_valid].tolist()
        lengths.add(len(ids))
    assert sorted(valid) == list(range(num_samples))
    assert len(lengths) == 1
    assert lengths.pop() % batch == 0


def test_labels_stand_beside_their_images_in_the_order_of_the_index(shards):
    index = ShardIndex.open(shards)
    seen = {}
    for rank in range(2):
        for batch in evaluation_batches(index, image_size=32, batch=16, rank=rank, world_size=2):
            assert batch.images.shape == (16, 3, 32, 32)
            for row in batch.valid.nonzero()[:, 0].tolist():
                assert int(batch.samples[row]) not in seen
                seen[int(batch.samples[row])] = (int(batch.labels[row]), batch.images[row])
    assert sorted(seen) == list(range(index.num_samples))
    for sample in (0, 41, 149):
        raw = parse_sample(read_samples(index, np.array([sample]))[0])
        assert seen[sample][0] == raw.label
        pixels = torch.from_numpy(decode_rgb(raw.image)).permute(2, 0, 1)
        side = round(min(pixels.shape[1:]) * 224 / 256)
        expected = v2.Resize(32, interpolation=v2.InterpolationMode.BICUBIC)(v2.CenterCrop(side)(pixels))
        # torchvision rounds an odd margin the other way: a pixel's shift of the crop, nothing else
        assert (seen[sample][1].float() - expected.float()).abs().mean() < 4


@pytest.mark.parametrize("given", [True, False])
def test_a_storage_of_its_own_is_closed_and_a_given_one_is_left_open(shards, monkeypatch, given):
    closed = []
    monkeypatch.setattr(Storage, "close", lambda self: closed.append(self))
    storage = Storage() if given else None
    batches = evaluation_batches(
        ShardIndex.open(shards), image_size=32, batch=16, rank=0, world_size=1, storage=storage
    )
    next(batches)
    batches.close()
    assert len(closed) == (0 if given else 1)


@pytest.mark.parametrize("workers", [0, 3])
def test_chosen_samples_come_once_each_whatever_decodes_them(shards, workers):
    index = ShardIndex.open(shards)
    chosen = evenly_chosen(index.num_samples, 11)
    seen = {}
    for rank in range(3):
        for batch in evaluation_batches(
            index, image_size=32, batch=2, rank=rank, world_size=3, chosen=chosen, workers=workers
        ):
            for row in batch.valid.nonzero()[:, 0].tolist():
                assert int(batch.samples[row]) not in seen
                seen[int(batch.samples[row])] = int(batch.labels[row])
    assert sorted(seen) == chosen.tolist()
    assert seen == {sample: parse_sample(read_samples(index, np.array([sample]))[0]).label for sample in chosen}


def test_evenly_chosen_samples_are_all_or_spread_over_the_index():
    assert evenly_chosen(5, None).tolist() == [0, 1, 2, 3, 4]
    assert evenly_chosen(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert evenly_chosen(10, 4).tolist() == [0, 2, 5, 7]
