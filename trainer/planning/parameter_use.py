"""Which modules use which parameters, in which order: what ZeRO-3 gathers and how ZeRO-2 reduces follow from it.

Found by running a model forward and backward once with hooks on its modules. The order does not depend on widths, so
that a thin LocalMIM of the same depth stands for one of any size; it takes milliseconds. The sizes come from torch's
meta device, where tensors have no data. No DeepSpeed, no ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from trainer.engine.groups import parameter_groups
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM


@dataclass(frozen=True)
class Leave:
    """A module's forward or backward ended: `parameters` are its own, `position` counts the modules entered so far."""

    parameters: tuple[str, ...]
    position: int


@dataclass(frozen=True)
class ParameterUse:
    """The parameters of a model at one frozen count, and their use in the forward and backward of a micro-batch.

    `sizes`: elements of every parameter, frozen ones too, in model order; `live_groups`: names by parameter group of
    the optimizer; `order`: the own parameters of each module as it is entered, in the forward, in the backward and in a
    forward that activation checkpointing repeats there; `leaves`: the same modules as they end; `gradient_order`: the
    parameters that train, as the backward completes their gradients."""

    sizes: Mapping[str, int]
    live_groups: Sequence[tuple[str, ...]]
    order: Sequence[tuple[str, ...]]
    leaves: Sequence[Leave]
    gradient_order: Sequence[str]

    @property
    def live_sizes(self) -> list[list[int]]:
        """Sizes of the parameters that still train, by parameter group."""
        return [[self.sizes[name] for name in group] for group in self.live_groups]


def parameter_use(model: Any, *inputs: torch.Tensor) -> ParameterUse:
    """Run `model` (see `groups.FreezableModel`) once and write down who uses what. Leaves gradients behind.

    `model(*inputs)` returns the loss, or a tuple that begins with it. In the backward a module is entered when the
    gradient of its output is there, so that a frozen one is not."""
    order: list[tuple[str, ...]] = []
    leaves: list[Leave] = []
    gradient_order: list[str] = []

    def enter_backward(names: tuple[str, ...]) -> None:
        order.append(names)
        leaves.append(Leave(names, len(order)))

    def watch(module: nn.Module, names: tuple[str, ...]) -> list[Any]:
        def leave(_: nn.Module, __: Any, output: Any) -> None:
            leaves.append(Leave(names, len(order)))
            for tensor in output if isinstance(output, tuple | list) else [output]:
                if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda _: enter_backward(names))

        enter = module.register_forward_pre_hook(lambda *_: order.append(names))
        return [enter, module.register_forward_hook(leave)]

    hooks = [hook for prefix, module in model.named_modules() for hook in watch(module, _own(prefix, module))]
    hooks += [
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: gradient_order.append(name))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    try:
        output = model(*inputs)
        (output[0] if isinstance(output, tuple) else output).backward()
    finally:
        for hook in hooks:
            hook.remove()
    return ParameterUse(
        sizes={name: parameter.numel() for name, parameter in model.named_parameters()},
        live_groups=[group.parameter_names for group in parameter_groups(model)],
        order=order,
        leaves=leaves,
        gradient_order=gradient_order,
    )


def _own(prefix: str, module: nn.Module) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" if prefix else name for name, _ in module.named_parameters(recurse=False))


def planned_use(config: ModelConfig, frozen_units: int, *, checkpoint_activations: bool = False) -> ParameterUse:
    """`parameter_use` of a LocalMIM of which `frozen_units` are frozen, without its memory or its work. Cached."""
    return _planned_use(config.model_dump_json(), frozen_units, checkpoint_activations)


@lru_cache(maxsize=256)
def _planned_use(config_json: str, frozen_units: int, checkpoint_activations: bool) -> ParameterUse:
    config = ModelConfig.model_validate_json(config_json)
    narrow = {"embed_dim": 4, "num_heads": 1, "decoder_dim": 4, "decoder_heads": 1}
    thin = config.model_copy(update=narrow | {"image_size": 2 * config.patch_size, "mask_ratio": 0.5})
    model = LocalMIM(thin, checkpoint_activations=checkpoint_activations)
    model.freeze_prefix(frozen_units)
    images = torch.zeros(1, 3, thin.image_size, thin.image_size, dtype=torch.uint8)
    return replace(parameter_use(model, images, torch.arange(4.0)[None]), sizes=_sizes(config_json))


@lru_cache(maxsize=8)
def _sizes(config_json: str) -> Mapping[str, int]:
    with torch.device("meta"):
        model = LocalMIM(ModelConfig.model_validate_json(config_json))
    return {name: parameter.numel() for name, parameter in model.named_parameters()}
