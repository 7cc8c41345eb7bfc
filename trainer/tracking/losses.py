"""The stage losses of an interval, summed on the device, so that only a log line makes the host wait for it."""

import torch
import torch.distributed as dist


class StageLosses:
    def __init__(self, num_stages: int, device: torch.device):
        self._sums = torch.zeros(num_stages, dtype=torch.float64, device=device)
        self._count = [0] * num_stages

    def add(self, stages: list[int], losses: torch.Tensor) -> None:
        """losses: fp32 [live stages], in the order of `stages`; one micro-batch."""
        for position, stage in enumerate(stages):
            self._sums[stage] += losses[position]
            self._count[stage] += 1

    def reduce(self, live: list[int]) -> list[float | None]:
        """Mean over ranks and micro-batches by stage, None where not live. Collective. Starts a new interval."""
        dist.all_reduce(self._sums)
        sums, world_size = self._sums.tolist(), dist.get_world_size()
        means = [
            sums[stage] / (count * world_size) if stage in live and count else None
            for stage, count in enumerate(self._count)
        ]
        self._sums.zero_()
        self._count = [0] * len(self._count)
        return means


def largest_over_ranks(value: float, device: torch.device) -> float:
    """Collective."""
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.item()
