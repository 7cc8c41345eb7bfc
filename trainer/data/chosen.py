"""A few samples of a source, always the same ones."""

import numpy as np

from trainer.data.pipe import PipeSource
from trainer.data.reader import Sample, parse_sample, read_samples
from trainer.data.source import DataSource


def evenly_chosen(source: DataSource, count: int) -> list[Sample]:
    """`count` samples, or all if there are fewer: at even distances over the shards; of a pipe its first ones."""
    if isinstance(source, PipeSource):
        return source.first_samples(count)
    places = np.unique(np.linspace(0, source.num_samples - 1, count).astype(np.int64))
    return [parse_sample(raw) for raw in read_samples(source, places)]
