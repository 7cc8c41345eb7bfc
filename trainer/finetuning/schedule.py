"""The learning rate of every unit at every step of a fine-tuning: a pure function."""

import math
from dataclasses import dataclass

from trainer.errors import BadInput


@dataclass(frozen=True)
class LayerDecaySchedule:
    """Linear warm-up from 0, then a cosine to `min_lr`, times ``layer_decay^(depth + 1 - unit)``.

    Units: 0 = the embeddings, i = block i-1, depth + 1 = what comes after the blocks, the head included. So the head
    has the full rate and each unit below it `layer_decay` times that of the one above, the floor included (BEiT,
    arXiv 2106.08254). Steps count from 0.

    Raises BadInput, naming the recipe's keys, on a schedule that makes no sense."""

    depth: int
    layer_decay: float
    total_steps: int
    warmup_steps: int
    lr: float
    min_lr: float

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps < self.total_steps:
            raise BadInput(
                f"a warm-up of {self.warmup_steps} steps in a run of {self.total_steps}: it must end before the run "
                "does; lower optimizer.warmup_epochs or train for longer"
            )
        if not 0 <= self.min_lr <= self.lr:
            raise BadInput(f"optimizer.min_lr {self.min_lr:g}: it must lie between 0 and the learning rate {self.lr:g}")

    @property
    def num_units(self) -> int:
        return self.depth + 2

    def learning_rates(self, step: int) -> list[float | None]:
        """Of each unit; never None, for no unit freezes."""
        rate = self._head_rate(step)
        return [rate * self.layer_decay ** (self.depth + 1 - unit) for unit in range(self.num_units)]

    def _head_rate(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.lr * step / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
