"""Counts the elements that DeepSpeed sends through collectives: a forgotten hook doubles them and changes no number."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import deepspeed.comm.comm as communication

CONTROL = 8
"""Tensors of at most so many elements are norms and overflow flags, not weights or gradients."""

REDUCING = ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor")
GATHERING = ("all_gather", "all_gather_into_tensor", "all_gather_coalesced", "broadcast")


@dataclass
class Traffic:
    """Elements of gradients reduced and of weights gathered on this rank (whole tensors, not one rank's share)."""

    reduced: int = 0
    gathered: int = 0


@contextmanager
def counted_traffic() -> Iterator[Traffic]:
    """Count what passes through DeepSpeed's backend inside the context."""
    backend, traffic = communication.cdb, Traffic()
    originals = {name: getattr(backend, name) for name in (*REDUCING, *GATHERING)}

    def counting(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            elements = max(_elements(value) for value in (*args, *kwargs.values()))
            if elements > CONTROL and name in REDUCING:
                traffic.reduced += elements
            elif elements > CONTROL:
                traffic.gathered += elements
            return originals[name](*args, **kwargs)

        return call

    for name in originals:
        setattr(backend, name, counting(name))
    try:
        yield traffic
    finally:
        for name in originals:
            delattr(backend, name)


def _elements(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return sum(_elements(item) for item in value)
    return value.numel() if hasattr(value, "numel") else 0
