"""When layers freeze."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from trainer.byte_sizes import Bytes
from trainer.section import Section


class FreezingConfig(Section):
    """When each unit anneals its learning rate to zero and leaves the training: by FreezeOut (arXiv 1706.04983), at
    steps of your own, or when it has stopped changing. docs/freezing.md has the formulas."""

    how: Literal["none", "linear", "squared", "cubic", "steps", "plasticity"] = Field(
        default="none",
        description="linear, squared, cubic: FreezeOut, by how a unit's share of the training falls towards the input; "
        "steps: when `steps` say; plasticity: when a unit's block has stopped changing, as measured; none freezes "
        "nothing.",
    )
    t0: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="FreezeOut: share of the steps after warm-up that unit 0 trains for, before squaring or cubing: "
        "cubic with 0.8 freezes it at 0.512 of them. 1 freezes nothing.",
    )
    scale_lr: bool = Field(
        default=True,
        description="FreezeOut and steps: divide a unit's learning rate by its share of the steps after warm-up, so "
        "that every unit travels equally far; a unit that freezes early gets a high one.",
    )
    warmup: Literal["uniform", "per_unit"] = Field(
        default="uniform",
        description="uniform: all units warm up to the plain rate, and scaled ones then jump to theirs (as published); "
        "per_unit: each warms up to its own rate, without a jump.",
    )
    steps: list[float] = Field(
        default=[],
        description="how: steps: the first step at which unit 0, 1, 2, … is frozen, never falling; the other units "
        "train to the end. All numbers of steps, from 1, or all shares of the run's steps, below 1.",
    )
    initial_units: int = Field(
        default=0,
        ge=0,
        description="Units that are frozen from the first step on, to go on from trained weights; they are never in "
        "the optimizer. The others freeze as they would without.",
    )
    probe_every: int = Field(
        default=200,
        ge=1,
        description="plasticity: optimizer steps between two measurements, the first at the end of the warm-up.",
    )
    probe_images: int = Field(
        default=32, ge=1, description="plasticity: images, always the same, that it is measured on."
    )
    tolerance: float = Field(
        default=0.3,
        gt=0,
        lt=1,
        description="plasticity: a unit may freeze when its plasticity is below this share of the most that it had.",
    )
    patience: int = Field(
        default=3, ge=1, description="plasticity: so many measurements in a row must be below the tolerance."
    )
    cool_down: int = Field(
        default=100,
        ge=0,
        description="plasticity: steps in which the learning rate of a unit that is to freeze anneals to zero; at most "
        "probe_every.",
    )
    at_most: float = Field(
        default=0.75, gt=0, le=1, description="plasticity: share of the units that may freeze; the last one never does."
    )
    rebatch: bool = Field(
        default=False,
        description="At a freeze, spend the memory that it frees on a larger micro-batch with less accumulation; the "
        "global batch stays, and so do the images of every step. Worth it where a forward pass has a price of its own, "
        "whatever its size: small micro-batches on a GPU, ZeRO-2 and 3, which communicate in every one.",
    )
    memory_budget: Bytes | None = Field(
        default=None,
        gt=0,
        description="Bytes of device memory per rank (80GB, 24GiB) that rebatch may fill, by the model of "
        "launch/plan.py, so leave room for what that does not count: the accelerator's context, communication buffers "
        "and fragmentation. Empty: what the run needs before its first freeze, so that no phase needs more.",
    )

    @field_validator("steps")
    @classmethod
    def _steps_or_shares(cls, steps: list[float]) -> list[float]:
        shares = [0 < step < 1 for step in steps]
        if any(shares) and not all(shares):
            raise ValueError(f"{_shown(steps)}: give numbers of steps, from 1, or shares of the run below 1, not both")
        if not any(shares) and any(step < 1 or step != int(step) for step in steps):
            raise ValueError(f"{_shown(steps)}: give whole numbers of steps, from 1, or shares of the run, all below 1")
        if steps != sorted(steps):
            raise ValueError(f"{_shown(steps)}: no unit can freeze before the one below it; let the numbers rise")
        return steps

    @model_validator(mode="after")
    def _keys_go_together(self) -> "FreezingConfig":
        if self.memory_budget is not None and not self.rebatch:
            raise ValueError("memory_budget is what rebatch may fill: set rebatch to true, or leave the budget empty")
        if self.steps and self.how != "steps":
            raise ValueError(f"steps are given but how is {self.how}: set how to steps, or leave steps empty")
        if self.how == "steps" and not self.steps:
            raise ValueError("how is steps but none are given: set steps, for instance [0.5, 0.6, 0.7]")
        if self.how == "plasticity" and self.cool_down > self.probe_every:
            raise ValueError(
                f"cool_down {self.cool_down} is longer than the {self.probe_every} steps between two measurements: "
                "lower it, or raise probe_every"
            )
        if self.how == "plasticity" and self.rebatch:
            raise ValueError(
                "rebatch needs to know the freezes in advance, for the data workers, and how: plasticity does not: set "
                "rebatch to false, or take another how"
            )
        return self


def _shown(steps: list[float]) -> str:
    return f"[{', '.join(f'{step:g}' for step in steps)}]"
