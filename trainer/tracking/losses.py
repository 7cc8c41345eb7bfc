"""The stage losses of an interval, summed on the device, so that only a log line makes the host wait for it.

Losses that are not finite are left out: their updates were skipped, and one would spoil the mean of an interval.
"""

import torch
import torch.distributed as dist


class StageLosses:
    def __init__(self, num_stages: int, device: torch.device):
        self._totals = torch.zeros(2, num_stages, dtype=torch.float64, device=device)  # sum of losses, how many images

    def add(self, stages: list[int], losses: torch.Tensor, images: int) -> None:
        """losses: fp32 [live stages], in the order of `stages`; means over a micro-batch of so many images."""
        losses = losses.detach().double()
        finite = losses.isfinite()
        added = images * torch.stack([losses.where(finite, 0.0), finite.double()])
        for position, stage in enumerate(stages):  # a list as index would be copied to the device, and waited for
            self._totals[:, stage] += added[:, position]

    def reduce(self, live: list[int]) -> list[float | None]:
        """Mean over all images of all ranks by stage: None where not live, NaN where none was finite. Collective.
        Starts a new interval."""
        dist.all_reduce(self._totals)
        means = (self._totals[0] / self._totals[1]).tolist()
        self._totals.zero_()
        return [mean if stage in live else None for stage, mean in enumerate(means)]
