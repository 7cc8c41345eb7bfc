"""The `data` section of the recipe."""

from pydantic import Field, model_validator

from trainer.section import Section


class DataConfig(Section):
    """Where the shards are, how samples are mixed, and how images are augmented.

    `lanes` and `window` decide the order of samples (see `trainer.data.order`); a run keeps them for life.
    `workers` and `prefetch` decide speed only."""

    path: str | None = Field(default=None, description="Directory of shards with their index, or the index file.")
    lanes: int | None = Field(
        default=None,
        ge=1,
        description="Places of the epoch that are read side by side. Divides the global batch, is a multiple of the "
        "world size. Default: the largest divisor of the global batch up to 256.",
    )
    window: int = Field(
        default=64, ge=1, description="Samples that a lane reads at once and shuffles among themselves."
    )
    workers: int = Field(default=4, ge=0, description="Decoding processes per rank; 0 decodes in the training process.")
    prefetch: int = Field(default=2, ge=1, description="Micro-batches that the workers prepare ahead.")
    crop_scale: tuple[float, float] = Field(
        default=(0.2, 1.0), description="Smallest and largest share of the image's area that a random crop keeps."
    )
    crop_ratio: tuple[float, float] = Field(
        default=(3 / 4, 4 / 3), description="Smallest and largest aspect ratio (width / height) of a random crop."
    )
    flip: float = Field(default=0.5, ge=0.0, le=1.0, description="Probability of a horizontal flip.")

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> "DataConfig":
        low, high = self.crop_scale
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"crop_scale = [{low}, {high}]: want 0 < smallest <= largest <= 1")
        low, high = self.crop_ratio
        if not 0.0 < low <= high:
            raise ValueError(f"crop_ratio = [{low}, {high}]: want 0 < smallest <= largest")
        return self
