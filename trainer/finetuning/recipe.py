"""What a fine-tuning is: the recipe of `launch/finetune.py`, with the defaults of LocalMIM's ViT-B (100 epochs)."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from trainer.data.config import DataConfig
from trainer.data.urls import redact, scheme_of
from trainer.engine.config import OptimizerConfig
from trainer.errors import BadInput
from trainer.model.config import EncoderConfig
from trainer.recipe import FINETUNE, AnyRecipe
from trainer.run_config import RunConfig
from trainer.section import Section
from trainer.tracking.config import LogConfig

_RAND_AUGMENT = re.compile(r"rand(-(m\d+|n\d+|mmax\d+|inc[01]|p(0?\.\d+|1)|mstd\d+(\.\d+)?))*")


class FinetuneConfig(Section):
    """From an encoder to a classifier."""

    init: str | None = Field(
        None,
        description="Pre-trained weights: a run, a step_… folder of its checkpoints, or a file (see --init). Read when "
        "a run starts, and not when it goes on.",
    )
    classes: int | None = Field(
        None, ge=2, description="Number of classes; empty = as many as the index of the shards names."
    )
    pooling: Literal["mean", "token"] = Field(
        "mean",
        description="What the head reads: the mean of the patch tokens, normalised, or the class token.",
    )
    layer_decay: float = Field(
        0.75,
        gt=0,
        le=1,
        description="Learning rate of a block over that of the block above it; the head has the full rate.",
    )
    drop_path: float = Field(
        0.1, ge=0, lt=1, description="Probability that the last block is left out for an image; falls linearly to 0."
    )
    average: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay per step of a moving average of the weights (0.9999), which is evaluated beside them; "
        "empty = none. Costs 4 bytes a parameter, divided over the ranks as the optimizer state is.",
    )

    @field_validator("init")
    @classmethod
    def _no_url(cls, init: str | None) -> str | None:
        if init is not None and scheme_of(init) is not None:
            raise ValueError(f"{redact(init)} is a URL, and weights are read from paths alone: download them first")
        return init


class AugmentationConfig(Section):
    """What is done to the images after the crop and the flip of the section `data`, and to the labels."""

    rand_augment: str | None = Field(
        "rand-m9-mstd0.5-inc1",
        description="RandAugment (arXiv 1909.13719) in timm's notation; empty = none. No colour jitter beside it.",
    )
    random_erasing: float = Field(
        0.25, ge=0, le=1, description="Probability that a rectangle of an image is filled with noise (1708.04896)."
    )
    mixup: float = Field(
        0.8, ge=0, description="Both parameters of the Beta distribution of mixup's share (1710.09412); 0 = no mixup."
    )
    cutmix: float = Field(
        1.0, ge=0, description="The same for the area of cutmix's rectangle (1905.04899); 0 = no cutmix."
    )
    mix_probability: float = Field(
        1.0, ge=0, le=1, description="Share of the steps whose images are mixed, by mixup or by cutmix."
    )
    cutmix_share: float = Field(
        0.5, ge=0, le=1, description="Share of cutmix among those, where both mixup and cutmix are on."
    )
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="Share of a target that is spread evenly over all classes."
    )

    @field_validator("rand_augment")
    @classmethod
    def _timm_knows_it(cls, value: str | None) -> str | None:
        if value is not None and not _RAND_AUGMENT.fullmatch(value):
            raise ValueError(f"write RandAugment as rand-m9-mstd0.5-inc1 (also n, p and mmax), not {value!r}")
        return value

    @property
    def mixes(self) -> bool:
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0


class ValidationConfig(Section):
    """Accuracy on held-out shards while the run goes on."""

    path: str | None = Field(
        None,
        description="Folder of shards with a val.json, or the index file: a path or a URL; empty = the val.json beside "
        "the training's.",
    )
    every_epochs: float = Field(
        1.0, ge=0, description="Epochs between two validations (rounded to steps), and one at the end; 0 = none at all."
    )
    batch: int = Field(64, ge=1, description="Images per rank and forward pass.")


class FinetuneOptimizer(OptimizerConfig):
    blr: float = Field(1e-3, gt=0, description="base learning rate, per 256 images of global batch")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the first and second moment")
    warmup_epochs: float = Field(20, ge=0, description="epochs of linear warm-up from 0 to the peak learning rate")


class FinetuneData(DataConfig):
    crop_scale: tuple[float, float] = Field(
        (0.08, 1.0), description="Smallest and largest share of the image's area that a random crop keeps."
    )


class FinetuneTrain(RunConfig):
    epochs: float = Field(100, gt=0, description="length of the run in passes over the data")
    global_batch: int = Field(1024, ge=1, description="images per optimizer step over all ranks and micro-batches")


class FinetuneRecipe(AnyRecipe):
    """A fine-tuning. The section `finetune` is what tells it from a pre-training."""

    model: EncoderConfig = EncoderConfig()
    optimizer: FinetuneOptimizer = FinetuneOptimizer()
    data: FinetuneData = FinetuneData()
    train: FinetuneTrain = FinetuneTrain()
    tracking: LogConfig = LogConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    validation: ValidationConfig = ValidationConfig()

    @classmethod
    def refuse_another_kind(cls, sections: dict[str, Any], source: str) -> None:
        if FINETUNE not in sections:
            raise BadInput(
                f"{source}: has no section {FINETUNE}, so it is a recipe for launch/pretrain.py: give that command, or "
                f"a recipe for fine-tuning (with {FINETUNE}: at least)"
            )
