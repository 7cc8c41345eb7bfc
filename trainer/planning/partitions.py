"""How ZeRO divides parameter groups over ranks: sizes of a rank's part, padding included."""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 2
"""ZeRO-1/2 pad a group to a multiple of so many elements per rank (4-byte alignment of 16-bit buffers)."""


def part_elements(sizes: Sequence[int], zero_stage: int, world_size: int) -> int:
    """Elements of a group, of parameters of these sizes, whose optimizer state one rank keeps.

    Stage 0: all; 1 and 2: an equal part of the padded group; 3: an equal part of each padded parameter."""
    if zero_stage == 0:
        return sum(sizes)
    if zero_stage == 3:
        return sum(ceil(size / world_size) for size in sizes)
    return ceil(sum(sizes) / (ALIGNMENT * world_size)) * ALIGNMENT


def most_elements_touched(groups: Sequence[Sequence[int]], world_size: int) -> int:
    """Elements of all parameters, counted whole, of which some rank's parts hold a piece; of the rank with most."""
    by_rank = sum(_elements_touched(tuple(sizes), world_size) for sizes in groups)
    return int(np.max(by_rank))


@lru_cache(maxsize=1024)
def _elements_touched(sizes: tuple[int, ...], world_size: int) -> NDArray[np.int64]:
    """For each rank, the whole sizes of a group's parameters that overlap its part, int64 [world_size]."""
    part = part_elements(sizes, 1, world_size)
    ends = np.cumsum(sizes)
    first_element = np.minimum(np.arange(world_size) * part, ends[-1])
    last_element = np.minimum(first_element + part, ends[-1])
    first = np.searchsorted(ends, first_element, side="right")
    last = np.searchsorted(ends - sizes, last_element, side="left")
    before = np.concatenate([[0], ends])
    return np.where(last > first, before[last] - before[np.minimum(first, last)], 0)
