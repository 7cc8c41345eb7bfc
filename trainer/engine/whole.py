"""Whole fp32 tensors out of what the ranks hold in parts."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist

from trainer.checkpoint.state_file import MASTER
from trainer.engine.engine import FreezingEngine


def whole_tensors(
    engine: FreezingEngine, kind: str, shapes: Mapping[str, list[int]], device: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
    """Each trainable parameter's master, or the moment `kind` of it, in fp32 on `device`, one after the other.

    Collective, to the end: every rank must take all of them. `shapes`: by name, of all parameters, none of them
    frozen. One all-reduce of the size of a parameter each."""
    parts = defaultdict(list)
    for fragment in engine.fragments(owned_only=True):
        parts[fragment.name].append((fragment.start, fragment.master if kind == MASTER else fragment.moments[kind]))
    for name, shape in shapes.items():
        whole = torch.zeros(torch.Size(shape).numel(), device=device)
        for start, values in parts[name]:
            whole[start : start + len(values)] = values
        dist.all_reduce(whole)  # an element has one owner, the others add 0 to it
        yield name, whole.view(shape)
