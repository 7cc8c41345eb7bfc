"""k-NN from shards to figures: what the command line and a run under way both call."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from trainer.data.evaluation import evenly_chosen
from trainer.data.shard_index import ShardIndex
from trainer.errors import BadInput
from trainer.evaluation.encoder import Encoder, Pool
from trainer.evaluation.features import Features, extract_features
from trainer.evaluation.knn import knn_accuracies
from trainer.evaluation.progress import Progress


def knn_on_shards(
    encoder: Encoder,
    train: ShardIndex,
    held_out: ShardIndex,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    pools: Sequence[Pool],
    batch: int,
    workers: int,
    max_train: int | None = None,
    max_held_out: int | None = None,
    say: Callable[[str], None] = print,
    alive: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Classify the held-out samples by their neighbours among the training samples. Collective.

    Of each at most `max_…` samples, evenly over its index. `alive` is told after every batch what goes on.

    Returns what goes into a JSON file and an `evaluation` event. Raises BadInput if the two have other classes or lack
    labels, ShardError if a sample is damaged."""
    started = time.monotonic()
    require_same_classes(train, held_out)

    def features(index: ShardIndex, what: str, most: int | None) -> Features:
        chosen = evenly_chosen(index.num_samples, most)
        return extract_features(
            encoder, index, batch=batch, pools=pools, chosen=chosen, workers=workers,
            progress=_told(Progress(say, f"features of {what} images", len(chosen)), alive, f"features of {what} images"),
        )  # fmt: skip

    bank, queries = features(train, "training", max_train), features(held_out, "held-out", max_held_out)
    results = []
    for pool in pools:
        what = f"neighbours by {pool} features"
        accuracies = knn_accuracies(
            bank.by_pool[pool],
            bank.labels,
            queries.by_pool[pool],
            queries.labels,
            ks=ks,
            temperatures=temperatures,
            progress=_told(Progress(say, what, len(queries.labels)), alive, what),
        )
        results += [{"pool": pool, **asdict(accuracy)} for accuracy in accuracies]
    return {
        "method": "knn",
        "train_samples": len(bank.labels),
        "samples": len(queries.labels),
        "classes": max(bank.num_classes, queries.num_classes),
        "results": results,
        "seconds": time.monotonic() - started,
    }


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


def _told(progress: Progress, alive: Callable[[str], None], what: str) -> Callable[[int], None]:
    def tell(done: int) -> None:
        alive(what)
        progress(done)

    return tell
