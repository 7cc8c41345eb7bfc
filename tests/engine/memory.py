"""Bytes that a rank keeps for the optimizer, in theory: what the tests hold the engine's measured bytes against.

The measured counterpart is `FreezingEngine.optimizer_bytes`; the two are equal once the first update was applied.
"""

from collections.abc import Iterable, Sequence
from math import ceil

MASTER_BYTES = 4
MOMENT_BYTES = 8
ALIGNMENT = 2
"""ZeRO-1/2 pad a group to a multiple of 2 elements per rank (4-byte alignment of 16-bit all-gather buffers)."""


def expected_optimizer_bytes(
    groups: Iterable[Sequence[int]], *, zero_stage: int, world_size: int, moments: bool = True
) -> int:
    """fp32 masters and AdamW moments of one rank, in bytes.

    `groups` holds the parameter sizes (numels) of each parameter group that still trains. ZeRO-0 keeps everything on
    every rank (under fp32 the weights are the masters, and are counted), ZeRO-1 and 2 an equal part of each padded
    group, ZeRO-3 an equal part of each padded parameter. `moments=False` is the state before the first update."""
    elements = 0
    for sizes in groups:
        if zero_stage == 0:
            elements += sum(sizes)
        elif zero_stage == 3:
            elements += sum(ceil(size / world_size) for size in sizes)
        else:
            elements += ceil(sum(sizes) / (ALIGNMENT * world_size)) * ALIGNMENT
    return elements * (MASTER_BYTES + (MOMENT_BYTES if moments else 0))
