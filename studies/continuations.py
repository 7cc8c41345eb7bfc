"""What the study of going on runs: trained weights learn from new images, with a frozen prefix or without, at equal
cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from studies.trials import MODEL, TINY_MODEL, Trial
from trainer.model.config import ModelConfig
from trainer.model.flops import step_flops

TRAINED_STEPS, QUICK_TRAINED_STEPS = 1440, 24
BUDGETS = (180, 540, 1440)
"""Costs, in steps of the unfrozen run."""
QUICK_BUDGETS = (24,)

EXPLORED_SEEDS = 2
"""Seeds 0 and 1 chose how many units to freeze, so they are no evidence for it: the study begins with seed 2."""

LAST_STAGES = [0.0, 0.0, 1.0, 1.0]
"""Weights without the stages on blocks 1 and 3, which fall away with units 1 to 4."""


@dataclass(frozen=True)
class Way:
    """How a run goes on. `is_new`: it does not, but begins with random weights."""

    frozen_units: int = 0
    lr: float = 2e-3
    model: Mapping[str, Any] | None = None
    is_new: bool = False
    budgets: tuple[int, ...] = BUDGETS


WAYS = {
    "unfrozen": Way(),
    "unfrozen, half the rate": Way(lr=1e-3),
    "unfrozen, from scratch": Way(is_new=True),
    "3 units frozen": Way(frozen_units=3),
    "5 units frozen": Way(frozen_units=5),
    "8 units frozen": Way(frozen_units=8, budgets=BUDGETS[:2]),
    "unfrozen, last two stages": Way(model={"stage_weights": LAST_STAGES}, budgets=BUDGETS[1:2]),
}
"""Name in tables and pictures → way. With 3 units the patch embedding and blocks 1 and 2 are frozen, of 12."""

RIVALS = ("unfrozen", "unfrozen, half the rate", "unfrozen, from scratch")
"""What the frozen ones are compared with."""


@dataclass(frozen=True)
class Continuation:
    """A run that begins with the weights of `trained(seed)`, unless its way says otherwise, and costs as much as
    `budget` steps of one that trains all units. Its own schedule, from warm-up to the end of the cosine, is as long as
    it is."""

    way: str
    budget: int
    seed: int
    quick: bool = False

    @property
    def name(self) -> str:
        """Of its folder."""
        return "-".join([*self.way.replace(",", "").split(), f"budget{self.budget}", f"seed{self.seed}"])

    @property
    def frozen_units(self) -> int:
        return WAYS[self.way].frozen_units

    @cached_property
    def steps(self) -> int:
        config = ModelConfig(**(TINY_MODEL if self.quick else MODEL))
        return round(self.budget * step_flops(config, 0).total / step_flops(config, self.frozen_units).total)

    def recipe(self, steps_per_epoch: int) -> dict[str, Any]:
        """As that of a trial of the study of freezing, which trains from the first step, but for what the way says."""
        way = WAYS[self.way]
        recipe = Trial("none", self.steps, self.seed, self.quick).recipe(steps_per_epoch)
        return recipe | {
            "model": recipe["model"] | (way.model or {}),
            "freezing": recipe["freezing"] | {"initial_units": way.frozen_units},
            "optimizer": recipe["optimizer"] | {"lr": way.lr},
            "checkpoint": {"every_steps": self.steps, "keep_last": 1},
        }


def trained(seed: int, *, quick: bool = False) -> Trial:
    """The run whose weights a continuation begins with."""
    return Trial("none", QUICK_TRAINED_STEPS if quick else TRAINED_STEPS, seed, quick)


def continuations(seeds: int, *, quick: bool = False) -> list[Continuation]:
    """Seed by seed, so that what an interrupted study has is whole."""
    return [
        Continuation(way, budget, seed, quick)
        for seed in range(EXPLORED_SEEDS, EXPLORED_SEEDS + seeds)
        for budget in (QUICK_BUDGETS if quick else BUDGETS)
        for way in WAYS
        if quick or budget in WAYS[way].budgets
    ]
