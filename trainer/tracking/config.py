"""The recipe's ``tracking`` section."""

from typing import Literal

from pydantic import Field

from trainer.section import Section


class LogConfig(Section):
    log_every: int = Field(
        20, ge=1, description="steps between two log lines; only there does a step wait for the accelerator"
    )
    tensorboard: bool = Field(True, description="write RUN/tensorboard beside RUN/metrics.jsonl")


class TrackingConfig(LogConfig):
    pictures: Literal["never", "end", "checkpoint"] = Field(
        "end", description="when to draw RUN/pictures: at no time, when the run ends, or at each checkpoint too"
    )
    picture_images: int = Field(4, ge=1, le=16, description="photographs in reconstructions.png")
