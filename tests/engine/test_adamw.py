"""AdamW in blocks is torch's AdamW: every bit, however the tensors are cut."""

from collections.abc import Callable

import pytest
import torch

from trainer.engine import adamw
from trainer.engine.adamw import BlockwiseAdamW

BETAS, EPS = (0.9, 0.95), 1e-8
SHAPES = [(7, 13), (3,), (1,), (64, 33), (1000,), (257,)]
"""Ends that fill no vector register, small ones that share a block, large ones that need several."""


def trained(make: Callable[[list[dict]], torch.optim.Optimizer], steps: int = 5) -> list[torch.Tensor]:
    """Weights and moments after some updates of two groups; one parameter has a gradient in every other step only."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer = make(
        [{"params": parameters[:4], "weight_decay": 0.1, "lr": 1e-2}, {"params": parameters[4:], "weight_decay": 0.0}]
    )
    for step in range(steps):
        for number, parameter in enumerate(parameters):
            parameter.grad = torch.randn_like(parameter) if number != 3 or step % 2 else None
        optimizer.param_groups[1]["lr"] = 1e-3 * (1 + step)
        optimizer.step()
    states = [optimizer.state[parameter] for parameter in parameters]
    return parameters + [state[key] for state in states for key in ("exp_avg", "exp_avg_sq", "step")]


@pytest.mark.parametrize("block", [2, 100, 1000, 2**18])
def test_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(adamw, "BLOCK_ELEMENTS", block)
    ours = trained(lambda groups: BlockwiseAdamW(groups, betas=BETAS, eps=EPS))
    torchs = trained(lambda groups: torch.optim.AdamW(groups, betas=BETAS, eps=EPS, foreach=False))
    assert all(torch.equal(a, b) for a, b in zip(ours, torchs, strict=True))


def test_no_block_is_larger_than_the_limit_and_small_tensors_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamw, "BLOCK_ELEMENTS", 1000)
    blocks: list[list[int]] = []
    update = torch.optim.adamw.adamw

    def watch(weights: list[torch.Tensor], *args: object, **kwargs: object) -> None:
        blocks.append([piece.numel() for piece in weights])
        update(weights, *args, **kwargs)

    monkeypatch.setattr(torch.optim.adamw, "adamw", watch)
    trained(lambda groups: BlockwiseAdamW(groups, betas=BETAS, eps=EPS), steps=2)
    assert blocks[0] == [91, 3, 1]  # the first step has no gradient for the fourth
    assert blocks[2] == [257]
    assert max(map(sum, blocks)) == 1000
