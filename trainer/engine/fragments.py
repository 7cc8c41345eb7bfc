"""The optimizer state of one rank, parameter by parameter: what a checkpoint saves and restores.

A fragment names a range of a flattened parameter and gives views of the fp32 master and of the moments for that
range. It says nothing of ZeRO stages, groups or padding, so a state saved as fragments loads at any stage and on any
number of ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import deepspeed
import torch

from trainer.engine import internals
from trainer.engine.groups import ParameterGroup

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + length) of the flattened parameter `name`, as this rank holds them.

    `master` and the values of `moments` are 1-D fp32 views of `length` elements: writing to them writes to the
    optimizer. `moments` is empty before the first applied update."""

    name: str
    start: int
    length: int
    master: torch.Tensor
    moments: dict[str, torch.Tensor]


def local_fragments(
    engine: deepspeed.DeepSpeedEngine, groups: Sequence[ParameterGroup], *, owned_only: bool
) -> Iterator[Fragment]:
    """Fragments of every trainable parameter with a part on this rank.

    Over all ranks, the fragments with `owned_only` cover every parameter exactly once. That makes a difference at
    stage 0 only, where every rank holds everything and owns an even share: [r·⌈n/W⌉, (r + 1)·⌈n/W⌉)."""
    state = internals.inner_optimizer(engine).state
    rank, world_size = engine.global_rank, engine.world_size
    for group, group_masters in zip(groups, internals.masters(engine), strict=True):
        for name, place in internals.locate(engine, group, group_masters):
            start, length = 0, place.length
            if owned_only and engine.zero_optimization_stage() == 0:
                start, length = even_slice(length, rank, world_size)
            if length:
                moments = {key: state[place.master][key] for key in MOMENTS if key in state.get(place.master, {})}
                yield Fragment(
                    name=name,
                    start=place.start + start,
                    length=length,
                    master=_view(place.master, place.offset + start, length),
                    moments={key: _view(moment, place.offset + start, length) for key, moment in moments.items()},
                )


def even_slice(numel: int, rank: int, world_size: int) -> tuple[int, int]:
    """(start, length) of a rank's share of a flattened parameter: ⌈numel / world size⌉ each, the last ones less."""
    share = ceil(numel / world_size)
    start = min(rank * share, numel)
    return start, min(share, numel - start)


def _view(tensor: torch.Tensor, start: int, length: int) -> torch.Tensor:
    return tensor.data.view(-1).narrow(0, start, length)
