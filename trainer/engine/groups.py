"""Parameter groups that can be frozen one unit at a time.

ZeRO flattens each parameter group and gives every rank an equal part of it. If a group never mixes units, the part of
a surviving group is the same before and after another unit freezes, so that a freeze moves no data between ranks. One
group per (unit, decayed or not) is also as fast as two groups for the whole model; one group per tensor is not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import nn


class FreezableModel(Protocol):
    """What the engine asks of a model besides being an `nn.Module`.

    Unit 0 is the input embedding, unit i the i-th block with what hangs on it; units freeze in that order."""

    num_units: int
    frozen_units: int

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def unit_of(self, parameter_name: str) -> int: ...

    def freeze_prefix(self, units: int) -> None: ...


@dataclass(frozen=True)
class ParameterGroup:
    """The parameters of one unit that share a weight decay. `sizes` are the numels of the whole parameters, which
    ZeRO-3 hides once it has partitioned them."""

    name: str
    unit: int
    decayed: bool
    parameter_names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    sizes: tuple[int, ...]


def is_decayed(name: str, parameter: nn.Parameter, exempt: frozenset[str] = frozenset()) -> bool:
    """timm's and MAE's rule: no weight decay for biases, for anything 1-D (norm weights) and for what is exempt."""
    return parameter.ndim > 1 and not name.endswith(".bias") and name not in exempt


def parameter_groups(model: FreezableModel) -> list[ParameterGroup]:
    """Trainable parameters by (unit, decayed), ordered by unit, decayed ones first; within a group in model order.

    A model may exempt parameters by name in a `no_weight_decay()` method, as timm's models do (tokens, usually)."""
    exempt = frozenset(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else frozenset()
    members: dict[tuple[int, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (model.unit_of(name), is_decayed(name, parameter, exempt))
            members.setdefault(key, []).append((name, parameter))
    return [
        ParameterGroup(
            name=f"unit {unit}, {'decayed' if decayed else 'not decayed'}",
            unit=unit,
            decayed=decayed,
            parameter_names=tuple(name for name, _ in named),
            parameters=tuple(parameter for _, parameter in named),
            sizes=tuple(parameter.numel() for _, parameter in named),
        )
        for (unit, decayed), named in sorted(members.items(), key=lambda item: (item[0][0], not item[0][1]))
    ]
