"""What the engine must equal: one process, plain AdamW on fp32 masters, gradients of the ranks averaged by hand.

It shares no code with the engine except the decayed-or-not rule. Of DeepSpeed it imitates only choices that any
data-parallel run makes: when gradients are averaged (every micro-batch at ZeRO-2 and 3, once per step at 0 and 1), in
which dtype they travel (the weights'), and how the loss scale moves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tests.engine.small_vit import SmallViT, batch
from trainer.engine.groups import is_decayed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class LossScale:
    """fp16's dynamic loss scale: halved by an overflow, doubled `window` steps after the first good one."""

    scale: float
    window: int
    good_steps: int = -1
    skipped: int = 0

    def update(self, overflow: bool) -> None:
        if overflow:
            self.scale, self.good_steps, self.skipped = self.scale / 2, -1, self.skipped + 1
            return
        self.good_steps += 1
        if self.good_steps and self.good_steps % self.window == 0:
            self.scale *= 2


@dataclass
class Reference:
    """Training of `model` as `world_size` ranks would do it together."""

    model: SmallViT
    precision: str
    world_size: int
    accumulation: int
    clip: float
    averages_every_micro_batch: bool
    make_optimizer: Callable[[list[dict]], torch.optim.Optimizer]
    weight_decay: float
    loss_scale: LossScale | None = None

    def __post_init__(self) -> None:
        self.model.to(DTYPES[self.precision])
        named = dict(self.model.named_parameters())
        self.masters = {name: parameter.detach().clone().float() for name, parameter in named.items()}
        decay = {name: self.weight_decay if is_decayed(name, p) else 0.0 for name, p in named.items()}
        self.optimizer = self.make_optimizer(
            [{"params": [m], "weight_decay": decay[n], "lr": 0.0, "unit": self.model.unit_of(n)}
             for n, m in self.masters.items()]
        )  # fmt: skip

    def step(self, step: int, rates: Sequence[float | None]) -> list[list[float]]:
        """One update; losses by micro-step and rank."""
        live = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        scale = self.loss_scale.scale if self.loss_scale else 1.0
        losses: list[list[float]] = []
        gradients: list[list[torch.Tensor]] = []  # by micro-step when averaged there, else by rank
        for micro_step in range(self.accumulation):
            losses.append([])
            by_rank = []
            for rank in range(self.world_size):
                self.model.zero_grad(set_to_none=True)
                loss = self.model(*batch(step, micro_step * self.world_size + rank))
                (loss / self.accumulation * scale).backward()
                losses[-1].append(loss.item())
                by_rank.append([parameter.grad.clone() for parameter in live.values()])
            if self.averages_every_micro_batch:
                by_rank = [self._average(by_rank)]
            gradients = [_add(a, b) for a, b in zip(gradients, by_rank, strict=True)] if gradients else by_rank
        total = gradients[0] if self.averages_every_micro_batch else self._average(gradients)
        self._apply(live, [gradient.float() for gradient in total], rates)
        return losses

    def skip(self) -> None:
        """A step whose gradient is not finite on some rank: only the loss scale hears of it."""
        if self.loss_scale:
            self.loss_scale.update(overflow=True)

    def _average(self, by_rank: list[list[torch.Tensor]]) -> list[torch.Tensor]:
        total = [gradient / self.world_size for gradient in by_rank[0]]
        for gradients in by_rank[1:]:
            total = _add(total, [gradient / self.world_size for gradient in gradients])
        return total

    def _apply(
        self, live: dict[str, torch.nn.Parameter], gradients: list[torch.Tensor], rates: Sequence[float | None]
    ) -> None:
        divisor = 1.0
        if self.loss_scale:
            overflow = not all(gradient.isfinite().all() for gradient in gradients)
            self.loss_scale.update(overflow)
            if overflow:
                return
            divisor = self.loss_scale.scale  # DeepSpeed 0.19.8 divides by the scale after the update
        if self.clip:
            norm = torch.sqrt(sum(gradient.pow(2).sum() for gradient in gradients)) / divisor
            divisor *= max(1.0, (norm.item() + 1e-6) / self.clip)
        for name, gradient in zip(live, gradients, strict=True):
            self.masters[name].grad = gradient if divisor == 1.0 else gradient * (1.0 / divisor)
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["unit"]] or 0.0
        self.optimizer.step()
        for name, parameter in live.items():
            parameter.data.copy_(self.masters[name])
            self.masters[name].grad = None


def _add(a: list[torch.Tensor], b: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x + y for x, y in zip(a, b, strict=True)]
