"""The recipe's ``evaluation`` section: k-NN while pre-training goes on."""

from typing import Literal

from pydantic import Field, field_validator

from trainer.section import Section, steps_between


class EvaluationConfig(Section):
    every_steps: int = Field(
        0,
        ge=0,
        description="classify held-out images by their neighbours every so many optimizer steps, and at the end",
    )
    every_epochs: float = Field(
        0.0, ge=0, description="the same in epochs (rounded to steps), where every_steps is 0; both 0 = never"
    )
    path: str | None = Field(
        None,
        description="held-out shards: a folder with val.json, or an index file; a path or a URL; empty = val.json "
        "beside the training shards",
    )
    k: list[int] = Field([20], min_length=1, description="how many neighbours vote; several are evaluated at once")
    temperature: list[float] = Field([0.07], min_length=1, description="T of their weights exp(cosine similarity / T)")
    pool: Literal["mean", "cls"] = Field(
        "mean", description="what stands for an image: the mean of its patch tokens, or the class token"
    )
    train_samples: int = Field(50_000, ge=1, description="training images to look for neighbours in, evenly chosen")
    samples: int = Field(10_000, ge=1, description="held-out images to classify, evenly chosen")
    batch: int = Field(64, ge=1, description="images per forward of a rank")
    workers: int = Field(4, ge=1, description="threads of a rank that read and decode")

    @field_validator("k", "temperature")
    @classmethod
    def _above_zero(cls, values: list[float]) -> list[float]:
        if min(values) <= 0:
            raise ValueError("want numbers above 0")
        return values

    def interval(self, steps_per_epoch: int) -> int:
        """Steps between two evaluations; 0 = never."""
        return steps_between(self.every_steps, self.every_epochs, steps_per_epoch)
