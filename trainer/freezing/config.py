"""When layers freeze."""

from typing import Literal

from pydantic import Field, model_validator

from trainer.byte_sizes import Bytes
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

    @model_validator(mode="after")
    def _budget_is_for_rebatching(self) -> "FreezingConfig":
        if self.memory_budget is not None and not self.rebatch:
            raise ValueError("memory_budget is what rebatch may fill: set rebatch to true, or leave the budget empty")
        return self
