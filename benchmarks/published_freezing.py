"""LocalMIM frozen as the published code does it: the class token trains to the end.

It stands at the input, so every frozen block has to pass its gradient on: it is recorded, keeps its activations, and
costs the half of its backward pass that leads to its input."""

import torch

from trainer.model.config import ModelConfig
from trainer.model.flops import step_flops
from trainer.model.localmim import LocalMIM


class PublishedFreezing(LocalMIM):
    """As `LocalMIM`, with the class token in the last unit, which never freezes, and the whole encoder in the graph."""

    def unit_of(self, parameter_name: str) -> int:
        return self.num_units - 1 if parameter_name == "cls_token" else super().unit_of(parameter_name)

    def _graph_of_unit(self, unit: int) -> torch.set_grad_enabled:
        return torch.set_grad_enabled(torch.is_grad_enabled())


def published_flops(config: ModelConfig) -> list[int]:
    """Matmul FLOPs of one image's step by frozen units, 0 … depth, counted as `trainer.model.flops` does.

    Beyond what a frozen block costs in LocalMIM: one gradient of each projection, and of attention's two products those
    of both factors, since both depend on the input."""
    tokens, width = 1 + config.num_kept, config.width
    projections = 2 * tokens * width * (4 * width + 2 * int(width * config.mlp_ratio))
    attention = 2 * (2 * tokens * width * tokens)
    passed_through = projections + 2 * attention
    return [step_flops(config, units).total + max(0, units - 1) * passed_through for units in range(config.num_units)]
