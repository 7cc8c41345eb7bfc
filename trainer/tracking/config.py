"""The recipe's ``tracking`` section."""

from typing import Annotated, Literal

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
    pictures_at: list[Annotated[int, Field(ge=1)]] = Field(
        [],
        description="steps at which to draw as well, for instance [100, 2000]: each saves a checkpoint, from which "
        "RUN/pictures/step_00000100 is drawn",
    )
    picture_images: int = Field(4, ge=1, le=16, description="photographs in each picture")
