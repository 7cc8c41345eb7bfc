"""Finds what would make the host wait for an accelerator, on a machine that has none.

On a CPU every value is there at once. So `HostWaits` looks for the calls that would wait: those that read a tensor's
value on the host (`item`, `bool`, `tolist`, boolean indices, …), those that make a tensor on a device out of a Python
value, since a copy from memory that is not pinned is waited for, and `synchronize` of the accelerator, a stream or an
event, which a CPU answers at once. `BetweenDevices` looks at tensors that only
pretend to lie on a GPU: no value of theirs can be read at all, and each copy to or from the host shows."""

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from deepspeed.accelerator import get_accelerator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.distributed import REPOSITORY

READING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"}
"""aten operators whose result, or its shape, the host has to know. `item`, `bool`, `float` … are the first of them."""
COPYING = {"tolist", "numpy", "cpu", "__array__"}
"""Methods that give the host the whole tensor; on a CPU they reach no operator."""
ON_THE_HOST = ("trainer/data/", "trainer/stopping.py")
"""Their tensors belong to the host on every machine: pixels before they are uploaded, and a flag reduced by gloo."""


@dataclass(frozen=True)
class Wait:
    step: int
    what: str
    where: str
    """File and function that it was called from: the innermost one of the trainer or of DeepSpeed."""


@contextmanager
def host_waits(step: Callable[[], int]) -> Iterator[list[Wait]]:
    """What is found within the context. `step`: tells the step under way."""
    found: list[Wait] = []

    def note(what: str) -> None:
        where = _where()
        if not where.startswith(ON_THE_HOST):
            found.append(Wait(step(), what, where))

    with ExitStack() as modes:
        modes.enter_context(_Functions(note))
        modes.enter_context(_Operators(note))
        for owner in (get_accelerator(), torch.cuda, torch.cuda.Stream, torch.cuda.Event):
            modes.enter_context(patch.object(owner, "synchronize", _noted(owner.synchronize, note)))
        yield found


def _noted(synchronize: Callable[..., None], note: Callable[[str], None]) -> Callable[..., None]:
    def noted(*args: Any, **kwargs: Any) -> None:
        note("synchronize")
        synchronize(*args, **kwargs)

    return noted


class _Functions(TorchFunctionMode):
    def __init__(self, note: Callable[[str], None]):
        super().__init__()
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if name in COPYING:
            self._note(name)
        if name in ("tensor", "as_tensor") and (kwargs or {}).get("device") is not None:
            self._note("upload")
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, note: Callable[[str], None]):
        super().__init__()
        self._note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in READING:
            self._note(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class BetweenDevices(TorchDispatchMode):
    """Within this context, `found` grows by each operator that has tensors on two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if len({tensor.device for tensor in tensors}) > 1:
            self.found.append(f"{func} in {_where()}")
        return result


def _where() -> str:
    for frame, _ in traceback.walk_stack(sys._getframe()):
        path = frame.f_code.co_filename
        for root in (f"{REPOSITORY}/trainer/", "/deepspeed/"):
            if root in path:
                return f"{root.split('/')[-2]}/{path[path.rindex(root) + len(root) :]} {frame.f_code.co_name}"
    return "elsewhere"
