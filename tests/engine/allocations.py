"""How much memory tensors need at the worst moment of something: what a freeze may not raise.

Resident memory would count malloc's slack and miss zeros that nobody has touched yet, and torch's profiler misses what
gloo's threads release. So storages themselves are followed: those that exist, and those of every operator's outputs.
What an operator allocates and frees inside its kernel is not seen.
"""

import gc
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Allocations(TorchDispatchMode):
    """Bytes in the storages of all tensors: `before` entering the context, `highest` in it, and `now`.

    ::

        with Allocations() as allocations:
            …
        allocations.rise            # bytes that had to be free for it
    """

    def __init__(self) -> None:
        super().__init__()
        self.before = self.highest = self.now = 0
        self._watched: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    @property
    def rise(self) -> int:
        return self.highest - self.before

    def __enter__(self) -> "Allocations":
        gc.collect()
        for found in gc.get_objects():
            if isinstance(found, torch.Tensor):
                self._see(found)
                if found.is_leaf and found.grad is not None:
                    self._see(found.grad)
        self.before = self.highest = self.now
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)

    def __torch_dispatch__(
        self, operator: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = operator(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, results)
        self.highest = max(self.highest, self.now)
        return results

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._watched and size and tensor.device.type != "meta":
            self.now += size
            self._watched[key] = weakref.ref(storage, lambda _: self._gone(key, size))

    def _gone(self, key: int, size: int) -> None:
        del self._watched[key]
        self.now -= size
