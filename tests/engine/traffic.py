"""Counts what DeepSpeed sends through collectives: a forgotten hook doubles it and changes no number."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import deepspeed.comm.comm as communication
import torch
import torch.distributed as dist

CONTROL = 4
"""Tensors of at most so many elements are norms and overflow flags, not weights or gradients."""

REDUCING = ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor")
GATHERING = ("all_gather", "all_gather_into_tensor", "all_gather_coalesced", "broadcast")


@dataclass(frozen=True)
class Call:
    """One collective: its name, and the elements of the whole tensor in it (not one rank's share)."""

    name: str
    elements: int
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.itemsize


@dataclass
class Traffic:
    """The collectives that moved gradients or weights, as this rank called them."""

    calls: list[Call] = field(default_factory=list)

    @property
    def reductions(self) -> list[Call]:
        return [call for call in self.calls if call.name in REDUCING]

    @property
    def gathers(self) -> list[Call]:
        return [call for call in self.calls if call.name in GATHERING]

    @property
    def sent_bytes(self) -> float:
        """What a rank sends for these calls with ring algorithms, on average over the ranks: an all-reduce is a
        reduce-scatter and an all-gather."""
        share = (dist.get_world_size() - 1) / dist.get_world_size()
        return share * sum((2 if call.name == "all_reduce" else 1) * call.bytes for call in self.calls)


@contextmanager
def counted_traffic() -> Iterator[Traffic]:
    """Count what passes through DeepSpeed's backend inside the context."""
    backend, traffic = communication.cdb, Traffic()
    originals = {name: getattr(backend, name) for name in (*REDUCING, *GATHERING)}

    def counting(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = [_extent(value) for value in (*args, *kwargs.values())]
            elements, dtype = max((tensor for tensor in tensors if tensor), key=lambda tensor: tensor[0])
            if elements > CONTROL:
                traffic.calls.append(Call(name, elements, dtype))
            return originals[name](*args, **kwargs)

        return call

    for name in originals:
        setattr(backend, name, counting(name))
    try:
        yield traffic
    finally:
        for name in originals:
            delattr(backend, name)


def _extent(value: Any) -> tuple[int, torch.dtype] | None:
    """Elements and dtype of a tensor, or of a list of tensors together; None of anything else."""
    if isinstance(value, torch.Tensor):
        return value.numel(), value.dtype
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
        return sum(tensor.numel() for tensor in value), value[0].dtype
    return None
