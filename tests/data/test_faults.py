"""A damaged shard is one clear error that names it, never a batch that is short or wrong."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_tools.shard_scan import describe_shard
from trainer.data.config import DataConfig
from trainer.data.errors import ShardError
from trainer.data.loader import LaneLoader
from trainer.data.shard_index import ShardIndex
from trainer.data.tar_members import BLOCK
from trainer.errors import BadInput

VICTIM = "train-00003.tar"


def load_epoch(index: ShardIndex, workers: int = 0) -> None:
    loader = LaneLoader(
        index, DataConfig(workers=workers, window=8), image_size=32, seed=0, global_batch=10, micro_batch=10, rank=0,
        world_size=1, end_step=15,
    )  # fmt: skip
    for _ in loader:
        pass


def overwrite(path: Path, start: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(content)


def truncate(shard: Path, ranges: np.ndarray) -> None:
    with open(shard, "r+b") as file:
        file.truncate(ranges[20, 0])


def remove(shard: Path, ranges: np.ndarray) -> None:
    shard.unlink()


def zero_a_header(shard: Path, ranges: np.ndarray) -> None:
    overwrite(shard, ranges[20, 0], bytes(BLOCK))


def scramble_a_header(shard: Path, ranges: np.ndarray) -> None:
    overwrite(shard, ranges[20, 0], bytes(range(128, 256)) * 4)


def claim_an_absurd_size(shard: Path, ranges: np.ndarray) -> None:
    header = tarfile.TarInfo("a.jpg")
    header.size = 2**40
    overwrite(shard, ranges[20, 0], header.tobuf(tarfile.GNU_FORMAT))


def flip_a_bit_in_a_name(shard: Path, ranges: np.ndarray) -> None:
    first = shard.read_bytes()[ranges[20, 0]]
    overwrite(shard, ranges[20, 0], bytes([first ^ 1]))


def swap_two_samples(shard: Path, ranges: np.ndarray) -> None:
    content = shard.read_bytes()
    (a, b), (c, d) = ranges[20], ranges[21]
    assert b - a != d - c
    overwrite(shard, a, content[c:d] + content[a:b])


def swap_members_of_two_samples(shard: Path, ranges: np.ndarray) -> None:
    """Exchanges the .cls members, which are of one size: every header is sound, but the keys do not agree."""
    content = shard.read_bytes()
    a, c = ranges[20, 0], ranges[21, 0]
    overwrite(shard, a, content[c : c + 2 * BLOCK])
    overwrite(shard, c, content[a : a + 2 * BLOCK])


def claim_a_label_of_20_digits(shard: Path, ranges: np.ndarray) -> None:
    """The .cls comes first: its size is in its header, whose checksum is set right."""
    header = tarfile.TarInfo.frombuf(shard.read_bytes()[ranges[20, 0] :][:BLOCK], "utf-8", "surrogateescape")
    assert header.name.endswith(".cls")
    header.size = 20
    overwrite(shard, ranges[20, 0], header.tobuf(tarfile.USTAR_FORMAT) + b"9" * 20)


def blank_an_image(shard: Path, ranges: np.ndarray) -> None:
    start, end = ranges[20]
    jpeg = shard.read_bytes().index(b"\xff\xd8\xff", start, end)
    overwrite(shard, jpeg, bytes(1000))


FAULTS: dict[Callable, str] = {
    truncate: "truncated",
    remove: "No such file",
    zero_a_header: "no tar header",
    scramble_a_header: "no tar header",
    claim_an_absurd_size: "'a.jpg' ends .* bytes past the range",
    flip_a_bit_in_a_name: "no tar header at byte 0 .bad checksum",
    swap_two_samples: "past the range|no tar header|members of 2 samples",
    swap_members_of_two_samples: "members of 2 samples",
    claim_a_label_of_20_digits: "its .cls is '99999999999999999999', not a class number",
    blank_an_image: "not an image",
}


@pytest.mark.parametrize("damage", FAULTS, ids=lambda damage: damage.__name__)
def test_damage_during_training_is_one_clear_error(copy, damage):
    index = ShardIndex.open(copy)
    _, ranges = describe_shard(copy / VICTIM)
    damage(copy / VICTIM, ranges)
    with pytest.raises(ShardError, match=FAULTS[damage]) as caught:
        load_epoch(index)
    message = str(caught.value)
    assert VICTIM in message
    assert "\n" not in message


def test_an_error_in_a_worker_reaches_the_training_process_as_it_is(copy):
    index = ShardIndex.open(copy)
    _, ranges = describe_shard(copy / VICTIM)
    blank_an_image(copy / VICTIM, ranges)
    with pytest.raises(ShardError) as caught:
        load_epoch(index, workers=2)
    start, end = ranges[20]
    assert f"{VICTIM}, bytes {start}-{end}, sample " in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("damage", [remove, truncate])
def test_a_shard_that_is_missing_or_of_another_size_is_named_before_training(copy, damage):
    _, ranges = describe_shard(copy / VICTIM)
    damage(copy / VICTIM, ranges)
    with pytest.raises(BadInput, match=VICTIM):
        ShardIndex.open(copy)


def test_swapped_shards_are_named_before_training(copy):
    first, second = copy / VICTIM, copy / "train-00004.tar"
    first.rename(copy / "x")
    second.rename(first)
    (copy / "x").rename(second)
    with pytest.raises(BadInput, match=VICTIM):
        ShardIndex.open(copy)
