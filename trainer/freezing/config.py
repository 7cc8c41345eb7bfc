"""When layers freeze."""

from typing import Literal

from pydantic import Field

from trainer.section import Section


class FreezingConfig(Section):
    """FreezeOut (arXiv 1706.04983): each unit anneals its own learning rate to zero and then leaves the training."""

    how: Literal["none", "linear", "squared", "cubic"] = Field(
        default="none", description="How a unit's share of the training falls towards the input; none freezes nothing."
    )
    t0: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Share of the steps after warm-up that unit 0 trains for, before squaring or cubing: "
        "cubic with 0.8 freezes it at 0.512 of them. 1 freezes nothing.",
    )
    scale_lr: bool = Field(
        default=True, description="Divide a unit's learning rate by its share, so that every unit travels equally far."
    )
    warmup: Literal["uniform", "per_unit"] = Field(
        default="uniform",
        description="uniform: all units warm up to the plain rate, and scaled ones then jump to theirs (as published); "
        "per_unit: each warms up to its own rate, without a jump.",
    )
