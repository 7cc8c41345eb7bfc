"""Amounts of memory are read and written as people do."""

import pytest

from trainer.byte_sizes import parse_bytes, show_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GB", 80 * 10**9),
        ("24GiB", 24 * 2**30),
        ("512 MiB", 2**29),
        ("1.5 kb", 1500),
        ("2tib", 2**41),
        ("4096", 4096),
        ("7B", 7),
        (7, 7),
    ],
)
def test_an_amount_is_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "80 giga", "8,5GB", "1e9", "80GBs", "∞"])
def test_what_is_no_amount_is_refused_with_the_way_to_write_one(text):
    with pytest.raises(ValueError, match="as 80GB, 24GiB, 512MiB or a number of bytes"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (1_840_000_000, "1.84 GB"), (80 * 10**9, "80 GB")],
)
def test_an_amount_is_shown_with_three_digits(size, text):
    assert show_bytes(size) == text
