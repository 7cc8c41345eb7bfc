"""Tiles of photographs: every tile once, on one side of the split, under its photograph's name."""

import numpy as np
from PIL import Image, ImageOps

from studies.photograph_tiles import COLUMNS, ROWS, TILE, is_held_out, make_shards
from trainer.data.decode import decode_rgb
from trainer.data.reader import parse_sample, read_samples
from trainer.data.shard_index import ShardIndex
from trainer.data.storage import Storage

HELD_OUT = COLUMNS * ROWS // 4


def test_a_quarter_is_held_out_and_no_two_of_it_touch():
    held_out = {(row, column) for row in range(ROWS) for column in range(COLUMNS) if is_held_out(row, column)}
    assert len(held_out) == HELD_OUT
    assert not [(r, c) for r, c in held_out if {(r + 1, c), (r, c + 1)} & held_out]


def test_the_tiles_of_both_splits_make_up_their_photographs(photograph_packages, tmp_path):
    folder = make_shards(tmp_path / "shards")
    training, held_out = ShardIndex.open(folder / "train.json"), ShardIndex.open(folder / "validation.json")
    photographs = {path.stem: path for path in photograph_packages.rglob("*.jpg")}
    assert training.classes == held_out.classes == tuple(sorted(photographs))
    assert held_out.num_samples == HELD_OUT * len(photographs)
    assert training.num_samples == (COLUMNS * ROWS - HELD_OUT) * len(photographs)
    seen = np.zeros((len(photographs), ROWS, COLUMNS), dtype=int)
    for index, of_held_out in ((training, False), (held_out, True)):
        for raw in read_samples(index, np.arange(index.num_samples), Storage()):
            sample = parse_sample(raw)
            row, column = map(int, sample.key.rsplit("/", 1)[-1].split("-")[0].split("_"))
            assert is_held_out(row, column) == of_held_out
            seen[sample.label, row, column] += 1
            if (row, column) in ((0, 0), (4, 5)):
                with Image.open(photographs[sorted(photographs)[sample.label]]) as file:
                    image = ImageOps.fit(file.convert("RGB"), (COLUMNS * TILE, ROWS * TILE), Image.Resampling.LANCZOS)
                tile = image.crop((column * TILE, row * TILE, (column + 1) * TILE, (row + 1) * TILE))
                grey = np.asarray(ImageOps.equalize(tile.convert("L")))
                found = decode_rgb(sample.image).astype(int)
                assert np.abs(found - grey[..., None]).mean() < 6
                assert np.ptp(found, axis=-1).max() <= 2  # JPEG's rounding
    assert (seen == 1).all()


def test_a_limit_takes_as_many_of_each_photograph(photograph_packages, tmp_path):
    folder = make_shards(tmp_path / "shards", limit=13)
    for split in ("train", "validation"):
        assert ShardIndex.open(folder / f"{split}.json").num_samples == 12
