"""The shards that an evaluation takes: those to learn from, and the held-out ones."""

from dataclasses import dataclass

from trainer.data.shard_index import ShardIndex
from trainer.errors import BadInput


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
