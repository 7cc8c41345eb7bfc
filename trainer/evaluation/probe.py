"""A sweep of linear classifiers on frozen features, trained at once: one for each learning rate, input and norm.

As in MAE's linear probe (arXiv 2111.06377, appendix A.1): LARS without weight decay, momentum 0.9, linear warm-up, then
half a cosine to zero, learning rate = base rate · batch / 256. With norm "batch" the features go through a BatchNorm
without affine parameters, with "none" straight into the classifier. Weights start from N(0, 0.01), biases from 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from timm.optim import Lars
from torch import Tensor, nn

from trainer.evaluation.collectives import rank_and_world_size, sum_over_ranks
from trainer.evaluation.encoder import POOLS, Pool
from trainer.evaluation.hits import count_hits

Norm = Literal["batch", "none"]
NORMS: tuple[Norm, ...] = ("batch", "none")
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class ProbeSettings:
    """What decides the result. ``rates``: base learning rates, per 256 images."""

    epochs: float = 90
    warmup_epochs: float = 10
    global_batch: int = 16384
    rates: Sequence[float] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    norms: Sequence[Norm] = NORMS
    pools: Sequence[Pool] = POOLS
    seed: int = 0


@dataclass(frozen=True)
class ProbeAccuracy:
    """Top-1 and top-5 on held-out samples of one classifier of the sweep."""

    pool: Pool
    norm: Norm
    rate: float
    top1: float
    top5: float


class Probe:
    """Every rank holds all classifiers; gradients and BatchNorm's statistics are those of all ranks together."""

    def __init__(
        self, width: int, num_classes: int, settings: ProbeSettings, *, total_steps: int, warmup_steps: int,
        device: torch.device | str = "cpu",
    ):  # fmt: skip
        self._settings, self._total_steps, self._warmup_steps = settings, total_steps, warmup_steps
        self._step = 0
        generator = torch.Generator().manual_seed(settings.seed)
        start = torch.empty(num_classes, width).normal_(std=0.01, generator=generator).to(device)
        self._norms: dict[Pool, BatchNorm] = {pool: BatchNorm(width, device) for pool in settings.pools}
        self._heads = {
            inputs: [_Head(start) for _ in settings.rates] for inputs in product(settings.pools, settings.norms)
        }
        groups = []
        for place, rate in enumerate(settings.rates):
            heads = [by_rate[place] for by_rate in self._heads.values()]
            # The ratio of norms is each weight matrix's own, so the classifiers know nothing of one another.
            groups += [
                {"params": [head.weight for head in heads], "base": rate, "always_adapt": True},
                {"params": [head.bias for head in heads], "base": rate, "always_adapt": False},
            ]
        self._optimizer = Lars(groups, lr=0.0, momentum=0.9, weight_decay=0.0, trust_coeff=0.001)

    def learning_rate(self, step: int) -> float:
        """Factor on the base rates at a step (0 = the first), global batch included."""
        if step < self._warmup_steps:
            share = step / self._warmup_steps
        else:
            over = (step - self._warmup_steps) / max(1, self._total_steps - self._warmup_steps)
            share = 0.5 * (1 + math.cos(math.pi * over))
        return share * self._settings.global_batch / 256

    def train_step(self, features: dict[Pool, Tensor], labels: Tensor) -> Tensor:
        """One update of all classifiers by this rank's equal share of the global batch: fp32 [n, D] for each pool,
        int64 [n]. Returns the mean loss on this rank of each, fp32 [pools · norms, rates]. Collective."""
        losses = []
        for (pool, norm), heads in self._heads.items():
            rows = features[pool] if norm == "none" else self._norms[pool].train(features[pool])
            losses.append(_losses(_logits(rows, heads), labels))
        by_head = torch.stack(losses)
        self._optimizer.zero_grad()
        by_head.sum().backward()
        self._average_gradients()
        for group in self._optimizer.param_groups:
            group["lr"] = group["base"] * self.learning_rate(self._step)
        self._optimizer.step()
        self._step += 1
        return by_head.detach()

    @torch.no_grad()
    def accuracies(self, features: dict[Pool, Tensor], labels: Tensor) -> list[ProbeAccuracy]:
        """Exact over ranks: all hold all rows, fp32 [N, D] and int64 [N], and each counts a share. Collective."""
        rank, world_size = rank_and_world_size()
        names = [(pool, norm, rate) for pool, norm in self._heads for rate in self._settings.rates]
        hits = torch.zeros(len(names), 2, dtype=torch.int64, device=labels.device)
        for first in range(rank * ROWS_AT_ONCE, len(labels), world_size * ROWS_AT_ONCE):
            piece = slice(first, first + ROWS_AT_ONCE)
            found = []
            for (pool, norm), heads in self._heads.items():
                rows = features[pool][piece] if norm == "none" else self._norms[pool].apply(features[pool][piece])
                found += [count_hits(each, labels[piece]) for each in _logits(rows, heads).unbind(1)]
            hits += torch.stack(found)
        shares = (sum_over_ranks(hits).double() / len(labels)).tolist()
        return [ProbeAccuracy(*name, *share) for name, share in zip(names, shares, strict=True)]

    def _average_gradients(self) -> None:
        _, world_size = rank_and_world_size()
        if world_size == 1:
            return
        gradients = [p.grad for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        flat = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients])).div_(world_size)
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


class BatchNorm:
    """BatchNorm without affine parameters over [n, D], with statistics of all ranks on any device.

    torch's SyncBatchNorm does that on GPUs only. Features are frozen, so no gradient has to go through."""

    eps, momentum = 1e-6, 0.1

    def __init__(self, width: int, device: torch.device | str = "cpu"):
        self.mean, self.variance = torch.zeros(width, device=device), torch.ones(width, device=device)

    @torch.no_grad()
    def train(self, rows: Tensor) -> Tensor:
        """Normalise by this batch, whose part of n rows is as large on every rank, and take note of it. Collective."""
        count = len(rows) * rank_and_world_size()[1]
        mean = sum_over_ranks(rows.sum(0)) / count
        variance = sum_over_ranks((rows - mean).square().sum(0)) / count
        self.mean.lerp_(mean, self.momentum)
        self.variance.lerp_(variance * count / max(1, count - 1), self.momentum)  # torch keeps the unbiased one
        return (rows - mean) / (variance + self.eps).sqrt()

    def apply(self, rows: Tensor) -> Tensor:
        """Normalise by the running statistics."""
        return (rows - self.mean) / (self.variance + self.eps).sqrt()


class _Head:
    def __init__(self, start: Tensor):
        """start: [classes, D]."""
        self.weight = nn.Parameter(start.clone())
        self.bias = nn.Parameter(start.new_zeros(len(start)))


def _logits(rows: Tensor, heads: Sequence[_Head]) -> Tensor:
    """[n, D] → [n, heads, classes], in one product."""
    weight, bias = torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])
    return F.linear(rows, weight, bias).unflatten(1, (len(heads), -1))


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each head, [heads]."""
    n, heads, classes = logits.shape
    repeated = labels[:, None].expand(n, heads)
    return F.cross_entropy(logits.reshape(-1, classes), repeated.reshape(-1), reduction="none").view(n, heads).mean(0)
