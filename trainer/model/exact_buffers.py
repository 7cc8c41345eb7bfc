"""Constants that stay fp32 when the weights are cast.

DeepSpeed casts the whole module with ``.bfloat16()`` or ``.half()``, buffers included. Pixel statistics and positions
rounded to 8 bits of mantissa would then move the targets and the tokens, and a later cast back could not restore them.
"""

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn


class ExactBuffers(nn.Module):
    """A module whose own floating-point buffers follow it to another device but never to another dtype."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self
