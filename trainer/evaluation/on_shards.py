"""From shards to figures: what the command line and a run under way both call. All of it is collective."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.data.evaluation import evenly_chosen
from trainer.data.storage import Storage
from trainer.errors import BadInput
from trainer.evaluation.encoder import POOLS, Encoder, Pool
from trainer.evaluation.features import Features, extract_features, require_trained_labels
from trainer.evaluation.knn import knn_accuracies
from trainer.evaluation.linear import num_steps, probe_augmented, probe_cached, require_whole_batches
from trainer.evaluation.probe import ProbeSettings
from trainer.evaluation.progress import Progress
from trainer.evaluation.splits import Split, require_same_classes


@dataclass(frozen=True)
class Extraction:
    """How features are computed: images per forward of a rank, its decoding threads and how they read, and who hears of
    it. `alive` is told after every batch what goes on, `say` now and then how long it will take."""

    batch: int = 64
    workers: int = 4
    pools: Sequence[Pool] = POOLS
    storage: Storage | None = None
    say: Callable[[str], None] = print
    alive: Callable[[str], None] = lambda what: None

    def features(self, encoder: Encoder, split: Split) -> Features:
        chosen = evenly_chosen(split.index.num_samples, split.most)
        return extract_features(
            encoder, split.index, batch=self.batch, pools=self.pools, chosen=chosen, workers=self.workers,
            storage=self.storage, progress=self.progress(f"features of {split.name} images", len(chosen)),
        )  # fmt: skip

    def progress(self, what: str, total: int, unit: str = "images") -> Callable[[int], None]:
        lines = Progress(self.say, what, total, unit)

        def tell(done: int) -> None:
            self.alive(what)
            lines(done)

        return tell


def knn_on_shards(
    encoder: Encoder,
    train: Split,
    held_out: Split,
    extraction: Extraction,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
) -> dict[str, Any]:
    """Classify the held-out samples by their neighbours among the training samples.

    Returns what goes into a JSON file and an `evaluation` event. Raises BadInput if the two have other classes or lack
    labels, or if held-out samples have labels beyond the training's, ShardError if a sample is damaged."""
    started = time.monotonic()
    require_same_classes(train.index, held_out.index)
    bank, queries = extraction.features(encoder, train), extraction.features(encoder, held_out)
    _require_trained_labels(queries, held_out, bank, train)
    results = []
    for pool in extraction.pools:
        accuracies = knn_accuracies(
            bank.by_pool[pool],
            bank.labels,
            queries.by_pool[pool],
            queries.labels,
            ks=ks,
            temperatures=temperatures,
            progress=extraction.progress(f"neighbours by {pool} features", len(queries.labels)),
        )
        results += [{"pool": pool, **asdict(accuracy)} for accuracy in accuracies]
    return {
        "method": "knn",
        "train_samples": len(bank.labels),
        "samples": len(queries.labels),
        "classes": max(bank.num_classes, queries.num_classes),
        "seconds": time.monotonic() - started,
        "results": results,
    }


def linear_on_shards(
    encoder: Encoder,
    train: Split,
    held_out: Split,
    extraction: Extraction,
    settings: ProbeSettings,
    *,
    cached: bool,
    num_classes: int | None = None,
) -> dict[str, Any]:
    """Train linear classifiers on the training samples, on features of their centre crops (`cached`) or of augmented
    views, and count the held-out hits. num_classes: for augmented views, where the index does not name its classes.

    Returns and raises as `knn_on_shards`."""
    started = time.monotonic()
    require_same_classes(train.index, held_out.index)
    named = len(train.index.classes or ())
    if not cached and not (num_classes or named):
        raise BadInput(f"{train.index.name} does not name its classes: say how many there are, or cache the features")
    samples = len(evenly_chosen(train.index.num_samples, train.most))
    if not cached and train.most is not None:
        raise BadInput("augmented views are of all training samples: cache the features to take a part of them")
    require_whole_batches(samples, settings)
    tested = extraction.features(encoder, held_out)
    progress = extraction.progress("linear probe", num_steps(samples, settings), "steps")
    if cached:
        bank = extraction.features(encoder, train)
        _require_trained_labels(tested, held_out, bank, train)
        accuracies = probe_cached(bank, tested, settings, progress=progress)
        num_classes = max(bank.num_classes, tested.num_classes)
    else:
        num_classes = num_classes or named
        require_trained_labels(tested, held_out.index, named or num_classes, train.index)
        accuracies = probe_augmented(
            encoder, train.index, tested, settings, num_classes=num_classes, batch=extraction.batch,
            workers=extraction.workers, progress=progress,
        )  # fmt: skip
    return {
        "method": "linear",
        "views": "cached centre crops" if cached else "augmented",
        "epochs": settings.epochs,
        "global_batch": settings.global_batch,
        "train_samples": samples,
        "samples": len(tested.labels),
        "classes": num_classes,
        "seconds": time.monotonic() - started,
        "results": [asdict(accuracy) for accuracy in accuracies],
    }


def _require_trained_labels(tested: Features, held_out: Split, bank: Features, train: Split) -> None:
    """The training samples have the classes that their index names, or else those of their labels; of a part of them
    without names nothing is refused, for it may lack the last classes."""
    classes = train.index.classes
    if classes or len(bank.labels) == train.index.num_samples:
        require_trained_labels(tested, held_out.index, len(classes or ()) or bank.num_classes, train.index)
