"""Checkpointed activations: every bit the same, one tensor kept for each live block, nothing done for frozen ones."""

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from tests.model.test_freeze_prefix import storages
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM

Batch = tuple[Tensor, Tensor]


def pair(config: ModelConfig, units: int, dtype: torch.dtype = torch.float32) -> tuple[LocalMIM, LocalMIM]:
    """The same model twice, the second with checkpointed activations."""
    torch.manual_seed(0)
    plain = LocalMIM(config)
    checkpointed = LocalMIM(config, checkpoint_activations=True)
    checkpointed.load_state_dict(plain.state_dict())
    for model in (plain, checkpointed):
        model.to(dtype)
        model.freeze_prefix(units)
    return plain, checkpointed


def kept_storages(model: LocalMIM, batch: Batch) -> dict[int, int]:
    """Bytes by address of what stays for the backward pass: what operations save, and the inputs of checkpointed
    blocks, which their checkpoints hold. Parameters left out."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    def keep_input(_block: object, inputs: tuple[Tensor]) -> None:
        if model.checkpoint_activations and torch.is_grad_enabled():
            kept.append(inputs[0])

    hooks = [block.register_forward_pre_hook(keep_input) for block in model.blocks]
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = model(*batch)
    for hook in hooks:
        hook.remove()
    del loss
    weights = storages(model.parameters())
    return {address: size for address, size in storages(kept).items() if address not in weights}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("units", [0, 1, 3])
def test_no_bit_of_loss_or_gradient_changes(tiny: ModelConfig, batch: Batch, dtype: torch.dtype, units: int) -> None:
    plain, checkpointed = pair(tiny, units, dtype)
    losses = [model(*batch)[0] for model in (plain, checkpointed)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for (name, expected), found in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        if expected.grad is None:
            assert found.grad is None, name
        else:
            assert torch.equal(found.grad, expected.grad), name


def test_only_live_blocks_run_again(tiny: ModelConfig, batch: Batch) -> None:
    _, model = pair(tiny, units=3)
    runs = [0] * len(model.blocks)

    def count(index: int) -> None:
        runs[index] += 1

    for index, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda _block, _inputs, index=index: count(index))
    model(*batch)[0].backward()
    assert runs == [1, 1, 2, 2]
    model.reconstruct(*batch)
    assert runs == [2, 2, 3, 3]


@pytest.mark.parametrize("units", [0, 1, 3])
def test_a_live_block_keeps_its_input_and_nothing_else(tiny: ModelConfig, batch: Batch, units: int) -> None:
    plain, checkpointed = pair(tiny, units)
    before, after = (sum(kept_storages(model, batch).values()) for model in (plain, checkpointed))
    tokens = len(batch[0]) * (1 + tiny.num_kept)
    floats_of_one_block = (
        # queries, keys, values; attention's output; both norms' outputs; the sum between the halves; GELU's in and out
        (3 + 1 + 2 + 1 + 2 * 4) * tiny.width
        # mean and deviation of two norms; the log-sum-exp of each head
        + 2 * 2
        + tiny.heads
    )
    live = tiny.num_blocks - max(0, units - 1)
    assert before - after == live * tokens * floats_of_one_block * 4
