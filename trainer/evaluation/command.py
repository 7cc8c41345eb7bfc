"""`launch/evaluate.py`: shards and weights in; a table, a JSON file and an event of the run out."""

import json
from argparse import Namespace
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from trainer.data.shard_index import ShardIndex
from trainer.data.urls import PIPE
from trainer.errors import BadInput
from trainer.evaluation.encoder import Encoder
from trainer.evaluation.loading import load_encoder
from trainer.evaluation.on_shards import Extraction, knn_on_shards, linear_on_shards
from trainer.evaluation.probe import ProbeSettings
from trainer.evaluation.splits import Split, require_same_classes
from trainer.evaluation.table import describe
from trainer.files import write_text
from trainer.ranks import Ranks
from trainer.setup import start_process_group
from trainer.tracking.console import Console
from trainer.tracking.metrics import append_event

COLLECTIVE_TIMEOUT = timedelta(hours=2)  # the longest that ranks wait for one that reads slow shards

Say = Callable[[str], None]


def evaluate(arguments: Namespace, ranks: Ranks) -> int:
    """Run on every rank. Raises `BadInput`."""
    say = Console(ranks.rank).say
    _check_files(arguments)
    train, held_out = _open(arguments, ranks.rank)
    device = start_process_group(ranks, COLLECTIVE_TIMEOUT)
    loaded = load_encoder(arguments.init, device, arguments.precision, say)
    say(
        f"{arguments.method} of {loaded.source} ({arguments.precision}) on {ranks.world_size} ranks: "
        f"{train.index.num_samples:,} training and {held_out.index.num_samples:,} held-out images"
    )
    result = _METHODS[arguments.method](arguments, loaded.encoder, train, held_out, say)
    if ranks.rank == 0:
        print(describe(result), flush=True)
        facts = {"init": loaded.source, "step": loaded.step, "precision": arguments.precision}
        facts |= {"train": train.index.name, "held_out": held_out.index.name, "world_size": ranks.world_size}
        _keep(arguments, facts | result, say)
    dist.barrier()
    dist.destroy_process_group()
    return 0


def _check_files(arguments: Namespace) -> None:
    init, output = arguments.init, arguments.output
    if not init.exists():
        raise BadInput(f"--init {init}: there is nothing; give a run directory, a step_… directory or a weights file")
    if output and output.exists() and not arguments.overwrite:
        raise BadInput(f"--output {output}: exists; choose another, or add --overwrite")
    if output and not output.parent.is_dir():
        raise BadInput(f"--output {output}: there is no folder {output.parent}; make it first")


def _open(arguments: Namespace, rank: int) -> tuple[Split, Split]:
    for option, path in (("--data", arguments.data), ("--val", arguments.val)):
        if path and path.startswith(PIPE):
            raise BadInput(f"{option}: a pipe: gives no exact set of samples; evaluation takes shards with an index")
    train = ShardIndex.open(arguments.data, "train", check_remote_shards=rank == 0)
    held_out = ShardIndex.open(arguments.val or arguments.data, "val", check_remote_shards=rank == 0)
    require_same_classes(train, held_out)
    return Split("training", train, arguments.max_train), Split("held-out", held_out, arguments.max_val)


def _knn(arguments: Namespace, encoder: Encoder, train: Split, held_out: Split, say: Say) -> dict[str, Any]:
    extraction = _extraction(arguments, say)
    return knn_on_shards(encoder, train, held_out, extraction, ks=arguments.k, temperatures=arguments.temperature)


def _linear(arguments: Namespace, encoder: Encoder, train: Split, held_out: Split, say: Say) -> dict[str, Any]:
    settings = ProbeSettings(
        epochs=arguments.epochs,
        warmup_epochs=arguments.warmup_epochs,
        global_batch=arguments.global_batch,
        rates=arguments.rates,
        norms=arguments.norm,
        pools=arguments.pool,
        seed=arguments.seed,
    )
    extraction = _extraction(arguments, say)
    return linear_on_shards(
        encoder, train, held_out, extraction, settings, cached=arguments.cached, num_classes=arguments.classes
    )


_METHODS = {"knn": _knn, "linear": _linear}


def _extraction(arguments: Namespace, say: Say) -> Extraction:
    return Extraction(batch=arguments.batch, workers=arguments.workers, pools=arguments.pool, say=say)


def _keep(arguments: Namespace, result: dict[str, Any], say: Say) -> None:
    if arguments.output:
        write_text(arguments.output, json.dumps(result, indent=2) + "\n")
        say(f"written: {arguments.output}")
    if result["step"] is not None and append_event(arguments.init, "evaluation", **result):
        say(f"noted in {arguments.init / 'metrics.jsonl'}")
