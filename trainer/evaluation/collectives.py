"""The few collectives that evaluation needs; without a process group there is one rank, and nothing to do."""

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world_size() -> tuple[int, int]:
    """(0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def rows_of_all_ranks(rows: Tensor) -> Tensor:
    """[n, …] of each rank → [ranks · n, …] in their order, on every rank. n must be the same on all."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return rows
    gathered = rows.new_empty(world_size * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(gathered, rows.contiguous())
    return gathered


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """In place, on every rank."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def none_of_any_rank(truth: bool, device: torch.device) -> bool:
    """Whether `truth` is False on every rank."""
    return not sum_over_ranks(torch.tensor(int(truth), device=device)).item()
