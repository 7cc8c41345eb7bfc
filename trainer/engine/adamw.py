"""AdamW as the engine runs it: fused on a GPU, in blocks on a CPU, DeepSpeed's own where the optimizer is offloaded."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor
from torch.optim import adamw

from trainer.engine.config import OptimizerConfig
from trainer.engine.ds_config import ResolvedDsConfig
from trainer.engine.fragments import MOMENTS
from trainer.engine.groups import ParameterGroup

BLOCK_ELEMENTS = 2**18
"""1 MiB of each tensor: weights, gradients, both moments and what is computed between stay in a core's share of the
last cache; smaller blocks cost more calls than they save."""


class BlockwiseAdamW(torch.optim.AdamW):
    """torch's AdamW, update by update the same bits, for a CPU: one block of the tensors after the other.

    An update passes over a tensor and its moments ten times. A whole shard is too large for the caches and would come
    from memory in every pass; a block comes once. Every operation is element by element, so that no bit depends on how
    the tensors are cut."""

    def __init__(self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float):
        super().__init__(groups, betas=betas, eps=eps, foreach=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody has a closure here
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            live = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in live:
                if not self.state[parameter]:
                    self.state[parameter] = new_state(parameter, 0, offloaded=False)
            states = [self.state[parameter] for parameter in live]
            rows = [[p, p.grad, *(state[key] for key in MOMENTS)] for p, state in zip(live, states, strict=True)]
            for numbers, (weights, gradients, averages, squares) in _blocks(rows):
                adamw.adamw(
                    weights,
                    gradients,
                    averages,
                    squares,
                    max_exp_avg_sqs=[],
                    state_steps=[states[number]["step"].clone() for number in numbers],
                    foreach=True,
                    amsgrad=False,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                )
            for state in states:
                state["step"] += 1


def make_adamw(
    groups: Sequence[ParameterGroup], config: OptimizerConfig, resolved: ResolvedDsConfig
) -> torch.optim.Optimizer:
    """AdamW over `groups` with a learning rate of 0."""
    group_dicts: list[dict[str, Any]] = [
        {"params": list(group.parameters), "lr": 0.0, "weight_decay": config.weight_decay if group.decayed else 0.0}
        for group in groups
    ]
    if resolved.offload_optimizer:
        from deepspeed.ops.adam import DeepSpeedCPUAdam  # builds a C++ op on first use

        return DeepSpeedCPUAdam(group_dicts, betas=config.betas, eps=config.eps, adamw_mode=True)
    if _fused():
        return torch.optim.AdamW(group_dicts, betas=config.betas, eps=config.eps, fused=True)
    return BlockwiseAdamW(group_dicts, betas=config.betas, eps=config.eps)


def new_state(master: Tensor, steps: int, *, offloaded: bool) -> dict[str, Any]:
    """The state that AdamW makes for itself at its first update, with its step count set."""
    moments = {key: torch.zeros_like(master, requires_grad=False) for key in MOMENTS}
    if offloaded:
        return {"step": steps, **moments}
    return {"step": torch.tensor(float(steps), device=master.device if _fused() else "cpu"), **moments}


def _fused() -> bool:
    """One kernel per group, no host synchronisation. On a CPU it is faster too, but it rounds the ends of a tensor
    differently from the middle, so that the last bit would depend on how ZeRO cuts the shards."""
    return get_accelerator().device_name() == "cuda"


def _blocks(rows: Sequence[Sequence[Tensor]]) -> Iterator[tuple[list[int], list[list[Tensor]]]]:
    """Pieces of at most `BLOCK_ELEMENTS` elements in a block, small tensors together: (the row that each piece is of,
    the pieces column by column). The tensors of a row are alike in shape and contiguous."""
    numbers: list[int] = []
    pieces: list[tuple[Tensor, ...]] = []
    elements = 0
    for number, row in enumerate(rows):
        for piece in zip(*(tensor.view(-1).split(BLOCK_ELEMENTS) for tensor in row), strict=True):
            if pieces and elements + piece[0].numel() > BLOCK_ELEMENTS:
                yield numbers, [list(column) for column in zip(*pieces, strict=True)]
                numbers, pieces, elements = [], [], 0
            numbers.append(number)
            pieces.append(piece)
            elements += piece[0].numel()
    if pieces:
        yield numbers, [list(column) for column in zip(*pieces, strict=True)]
