"""The fp32 weights of frozen units, kept in host memory by the rank that owned them.

When a unit freezes, the engine gives back its fp32 masters, and under bf16 or fp16 only the rounded weights are left.
The exact ones are kept here from the moment of the freeze, 4 bytes per frozen parameter divided over the ranks, so
that every checkpoint and export is complete in fp32.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch

from trainer.engine.engine import FreezingEngine
from trainer.engine.fragments import even_slice


@dataclass
class FrozenArchive:
    """name → (start, fp32 values on the host), this rank's part only."""

    parts: dict[str, tuple[int, torch.Tensor]] = field(default_factory=dict)

    def keep(self, engine: FreezingEngine, names: set[str]) -> None:
        """Copy the masters of the parameters about to freeze. Call before `FreezingEngine.freeze`."""
        for fragment in engine.fragments(owned_only=True):
            if fragment.name in names:
                self.parts[fragment.name] = (fragment.start, fragment.master.detach().to("cpu", copy=True))

    def keep_initial(self, model: torch.nn.Module, names: set[str], rank: int, world_size: int) -> None:
        """Take this rank's share of parameters that never train, of a model that no engine holds yet."""
        whole = {name: p.detach().flatten() for name, p in model.named_parameters() if name in names}
        sizes = [(name, values.numel()) for name, values in whole.items()]
        self.restore(sizes, lambda name, start, length: whole[name][start : start + length], rank, world_size)

    def restore(
        self,
        parameters: Iterable[tuple[str, int]],
        read: Callable[[str, int, int], torch.Tensor],
        rank: int,
        world_size: int,
    ) -> None:
        """Take this rank's share of each (name, numel) from a checkpoint's `read(name, start, length)`."""
        for name, numel in parameters:
            start, length = even_slice(numel, rank, world_size)
            if length:
                self.parts[name] = (start, read(name, start, length).clone())

    def __iter__(self) -> Iterator[tuple[str, int, torch.Tensor]]:
        return ((name, start, values) for name, (start, values) in self.parts.items())
