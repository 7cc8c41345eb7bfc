"""The shards that an evaluation takes: those to learn from, and the held-out ones."""

from dataclasses import dataclass

from trainer.data.config import DataConfig
from trainer.data.shard_index import ShardIndex
from trainer.data.source import DataSource
from trainer.data.storage import Storage
from trainer.errors import BadInput
from trainer.evaluation.config import EvaluationConfig


@dataclass(frozen=True)
class Split:
    """The samples of an index that take part: at most `most`, evenly over it."""

    name: str
    index: ShardIndex
    most: int | None = None


def require_same_classes(train: ShardIndex, held_out: ShardIndex) -> None:
    """Raises BadInput where both name their classes and label 7 of one would not be label 7 of the other."""
    if train.classes is None or held_out.classes is None or train.classes == held_out.classes:
        return
    pairs = zip(train.classes, held_out.classes, strict=False)
    label = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(train.classes), len(held_out.classes)))
    raise BadInput(
        f"{held_out.name} has other classes than {train.name}: {len(held_out.classes)} and {len(train.classes)}, and "
        f"label {label} is the first that differs: convert both splits with one list of classes"
    )


def open_held_out(config: EvaluationConfig, train: DataSource, data: DataConfig, rank: int) -> ShardIndex:
    """The held-out shards of a pre-training that `evaluation` asks for. Raises BadInput if there are none that go with
    the training shards."""
    if not isinstance(train, ShardIndex):
        raise BadInput(
            "evaluation: a pipe: as data.path gives no exact set of training samples; set evaluation.every_…=0"
        )
    path = config.path or data.path
    assert path is not None  # the training shards were opened
    if config.path is None and path.partition("?")[0].endswith(".json"):
        raise BadInput(f"evaluation.path is empty and data.path is a file, {train.name}: say where held-out shards lie")
    storage = Storage(data.retries, data.timeout)
    held_out = ShardIndex.open(path, "val", storage=storage, check_remote_shards=rank == 0)
    require_same_classes(train, held_out)
    return held_out
