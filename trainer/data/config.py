"""The `data` section of the recipe."""

from typing import Literal

from pydantic import Field, model_validator

from trainer.byte_sizes import Bytes
from trainer.data.urls import PIPE, redact, scheme_of
from trainer.section import Section


class DataConfig(Section):
    """Where the shards are, how samples are mixed, and how images are augmented.

    `lanes` and `window` decide the order of samples (see `trainer.data.order`); a run keeps them for life.
    `workers`, `prefetch`, `read_ahead` and the cache decide speed, memory and traffic only."""

    path: str | None = Field(
        default=None,
        description="Directory of shards with their index, or the index file: a path or a URL (s3://, gs://, "
        "http(s)://, …). Or a command for each shard, 'pipe:aws s3 cp s3://bucket/train-{00000..01023}.tar -', whose "
        "samples come in no exact order.",
    )
    samples: int | None = Field(
        default=None, ge=1, description="With pipe:, how many samples count as an epoch; otherwise the index says it."
    )
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
    read_ahead: int = Field(
        default=4, ge=0, description="Blocks of `window` samples that each worker reads ahead in the background."
    )
    retries: int = Field(
        default=8, ge=0, description="How often a read that failed for the moment is tried again, after 1/4 s to 30 s."
    )
    timeout: float = Field(
        default=60.0,
        gt=0,
        description="Seconds that one request to a URL may take; a read is two of them. For s3://, gs://, http(s):// "
        "and fsspec's other asynchronous filesystems; no effect on any other, nor on paths and pipe:.",
    )
    cache: str | None = Field(
        default=None,
        description="A folder on each machine's own disk that keeps what was read of shards behind URLs, for all "
        "processes of the machine and for later epochs and runs. Empty: nothing is kept.",
    )
    cache_size: Bytes | None = Field(
        default=None,
        ge=64 * 2**20,
        description="The most that the files in `cache` may take, as 200GB or 500GiB; what was used longest ago goes. "
        "Best all that a machine reads: the size of the shards.",
    )
    on_bad_sample: Literal["raise", "skip-and-substitute"] = Field(
        default="raise",
        description="A damaged or undecodable sample stops the run, or another sample of its block stands in for it, "
        "the same on every layout; the metrics count them. A shard that is missing always stops it.",
    )
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

    @model_validator(mode="after")
    def _samples_go_with_pipe(self) -> "DataConfig":
        piped = self.path is not None and self.path.startswith(PIPE)
        if piped and self.samples is None:
            raise ValueError("path is a pipe:, and nothing says how many samples an epoch has: set data.samples")
        if self.samples is not None and self.path is not None and not piped:
            raise ValueError("samples: only with a pipe:; the index of the shards says how many there are: remove it")
        return self

    @model_validator(mode="after")
    def _cache_goes_with_urls(self) -> "DataConfig":
        if (self.cache is None) != (self.cache_size is None):
            given, missing = ("cache", "cache_size") if self.cache_size is None else ("cache_size", "cache")
            raise ValueError(f"{given} is given without {missing}: set data.{missing} too, or leave both out")
        if self.cache is not None and scheme_of(self.cache) is not None:
            raise ValueError(f"cache is {redact(self.cache)}, a URL: name a folder on each machine's own disk")
        if self.cache is not None and self.path is not None and self.path.startswith(PIPE):
            raise ValueError("cache: nothing of a pipe: can be kept; leave cache and cache_size out")
        return self
