"""An engine that keeps a moving average of the weights, cut up as the optimizer's state is."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from trainer.engine.config import OptimizerConfig
from trainer.engine.ds_config import ResolvedDsConfig
from trainer.engine.engine import FreezingEngine
from trainer.engine.fragments import Fragment

AVERAGE = "average"
"""Name of the average among a fragment's moments, and its kind in a checkpoint."""


class AveragingEngine(FreezingEngine):
    """``average ← decay · average + (1 - decay) · master`` after every applied update; it begins as the weights.

    Of the fp32 masters, not of the rounded weights, and on each rank of those that it holds: so it works at every ZeRO
    stage, in every precision and with offload, costs no communication, and is saved and resumed with the moments.
    Nothing may freeze under it."""

    def __init__(self, model: torch.nn.Module, resolved: ResolvedDsConfig, optimizer: OptimizerConfig, decay: float):
        super().__init__(model, resolved, optimizer)
        self._decay = decay
        held = super().fragments(owned_only=False)
        self._averages = {fragment.name: (fragment.start, fragment.master.detach().clone()) for fragment in held}

    def fragments(self, *, owned_only: bool) -> Iterator[Fragment]:
        """As the engine's, with the average among the moments."""
        for fragment in super().fragments(owned_only=owned_only):
            start, average = self._averages[fragment.name]
            view = average.narrow(0, fragment.start - start, fragment.length)
            yield replace(fragment, moments=fragment.moments | {AVERAGE: view})

    @torch.no_grad()
    def set_masters(self, weights: Mapping[str, torch.Tensor]) -> None:
        """As the engine's; the average begins anew, as these weights."""
        super().set_masters(weights)
        for fragment in super().fragments(owned_only=False):
            self._averages[fragment.name][1].copy_(fragment.master)

    def _update(self) -> None:
        skipped = self.skipped_steps
        super()._update()
        if self.skipped_steps == skipped:
            held = list(super().fragments(owned_only=False))
            averages = [self._averages[fragment.name][1] for fragment in held]
            torch._foreach_lerp_(averages, [fragment.master for fragment in held], 1 - self._decay)
