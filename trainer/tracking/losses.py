"""The stage losses of an interval, summed on the device, so that only a log line makes the host wait for it."""

import torch
import torch.distributed as dist


class StageLosses:
    def __init__(self, num_stages: int, device: torch.device):
        self._sums = torch.zeros(num_stages + 1, dtype=torch.float64, device=device)  # the last one: stop requests
        self._device = device
        self._count = [0] * num_stages

    def add(self, stages: list[int], losses: torch.Tensor) -> None:
        """losses: fp32 [live stages], in the order of `stages`; one micro-batch."""
        for position, stage in enumerate(stages):
            self._sums[stage] += losses[position]
            self._count[stage] += 1

    def reduce(self, live: list[int], stop: bool) -> tuple[list[float | None], bool]:
        """Mean over ranks and micro-batches by stage (None where not live) and whether any rank asks to stop.

        One collective for both. Starts a new interval."""
        self._sums[-1] = float(stop)
        dist.all_reduce(self._sums)
        *sums, stops = self._sums.tolist()
        world_size = dist.get_world_size()
        means = [
            sums[stage] / (self._count[stage] * world_size) if stage in live and self._count[stage] else None
            for stage in range(len(self._count))
        ]
        self._sums.zero_()
        self._count = [0] * len(self._count)
        return means, stops > 0
