"""The index is complete, or refused with the file that is wrong."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import SHARD_EDGES
from trainer.data.reader import parse_sample, read_samples
from trainer.data.shard_index import ShardIndex, offsets_file, write_index
from trainer.errors import BadInput


def test_a_directory_and_its_index_file_open_as_the_same(shards):
    index = ShardIndex.open(shards)
    assert index == ShardIndex.open(shards / "train.json")
    assert index.num_samples == 150
    assert index.shard_lengths.tolist() == np.diff(SHARD_EDGES).tolist()
    assert index.classes == ("astronaut", "chelsea", "china", "coffee", "flower", "rocket")


def test_every_sample_is_found_by_its_byte_range(shards):
    index = ShardIndex.open(shards)
    samples = [parse_sample(raw) for raw in read_samples(index, np.arange(150))]
    assert len({sample.key for sample in samples}) == 150
    for number in (0, 40, 41, 42, 149):
        assert parse_sample(read_samples(index, np.array([number]))[0]) == samples[number]


def test_the_content_hash_names_the_samples_and_not_their_place(shards, copy):
    content_hash = ShardIndex.open(shards).content_hash
    assert ShardIndex.open(copy).content_hash == content_hash
    text = (copy / "train.json").read_text()
    sha256 = ShardIndex.open(copy).shards[0].sha256
    (copy / "train.json").write_text(text.replace(sha256, "0" * 64))
    assert ShardIndex.open(copy).content_hash != content_hash


def test_sending_an_index_to_a_worker_does_not_send_the_offsets(shards):
    index = ShardIndex.open(shards)
    assert len(index.offsets) == 150
    sent = pickle.dumps(index)
    assert len(sent) < 150 * 16
    assert np.array_equal(pickle.loads(sent).offsets, index.offsets)


def test_what_is_no_index_is_refused(tmp_path, copy):
    with pytest.raises(BadInput, match=r"no shard index at .*nowhere"):
        ShardIndex.open(tmp_path / "nowhere")
    index = json.loads((copy / "train.json").read_text())
    del index["shardlist"][2]["sha256"]
    (copy / "train.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"train\.json lacks 'sha256'"):
        ShardIndex.open(copy)
    (copy / "train.json").write_text("[")
    with pytest.raises(BadInput, match=r"train\.json is not a shard index"):
        ShardIndex.open(copy)


@pytest.mark.parametrize(("row", "values"), [(7, (-512, 1024)), (149, (1024, 2**40)), (42, (1024, 1024))])
def test_byte_ranges_outside_their_shards_are_refused(copy, row, values):
    file = offsets_file(copy / "train.json")
    offsets = np.load(file)
    offsets[row] = values
    np.save(file, offsets)
    with pytest.raises(BadInput, match=rf"places sample {row} at bytes {values[0]}-{values[1]} of train-\d+\.tar"):
        ShardIndex.open(copy)


def test_offsets_of_other_shards_are_refused(copy):
    file = offsets_file(copy / "train.json")
    np.save(file, np.load(file)[:-1])
    with pytest.raises(BadInput, match=r"train\.offsets\.npy of .*train\.json holds int64 \[149, 2\]"):
        ShardIndex.open(copy)
    file.write_bytes(b"junk")
    with pytest.raises(BadInput, match=r"cannot read train\.offsets\.npy, the byte ranges of .*train\.json"):
        ShardIndex.open(copy)


def test_sizes_are_left_out_where_a_base_name_is_no_name(copy):
    for folder in ("a", "b"):
        (copy / folder).mkdir()
    shards = list(ShardIndex.open(copy).shards)
    offsets = ShardIndex.open(copy).offsets
    for number, folder in ((0, "a"), (1, "b")):
        shutil.copy(copy / shards[number].path, copy / folder / "train-00000.tar")
        shards[number] = replace(shards[number], path=f"{folder}/train-00000.tar")
    write_index(copy, "train", shards, offsets, None, {})
    sizes = json.loads((copy / "sizes.json").read_text())
    assert "train-00000.tar" not in sizes
    assert sizes["train-00002.tar"] == shards[2].num_samples


def test_a_damaged_file_that_splits_share_is_named(copy):
    (copy / "sizes.json").write_text("{")
    index = ShardIndex.open(copy)
    with pytest.raises(BadInput, match=r"sizes\.json is damaged .*: delete it"):
        write_index(copy, "train", index.shards, index.offsets, index.classes, {})
