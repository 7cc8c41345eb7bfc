"""`launch/evaluate.py`: shards and weights in; a table, a JSON file and an event of the run out."""

import json
from argparse import Namespace
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from trainer.data.shard_index import ShardIndex
from trainer.data.urls import PIPE
from trainer.errors import BadInput
from trainer.evaluation.encoder import Encoder
from trainer.evaluation.loading import load_encoder
from trainer.evaluation.on_shards import knn_on_shards
from trainer.evaluation.table import describe
from trainer.files import write_text
from trainer.ranks import Ranks
from trainer.setup import start_process_group
from trainer.tracking.console import Console
from trainer.tracking.metrics import append_event

COLLECTIVE_TIMEOUT = timedelta(hours=2)  # the longest that ranks wait for one that reads slow shards


def evaluate(arguments: Namespace, ranks: Ranks) -> int:
    """Run on every rank. Raises `BadInput`."""
    say = Console(ranks.rank).say
    if arguments.output and arguments.output.exists() and not arguments.overwrite:
        raise BadInput(f"--output {arguments.output}: exists; choose another, or add --overwrite")
    train, held_out = _open(arguments, ranks.rank)
    device = start_process_group(ranks, COLLECTIVE_TIMEOUT)
    loaded = load_encoder(arguments.init, device, arguments.precision, say)
    say(
        f"{arguments.method} of {loaded.source} ({arguments.precision}) on {ranks.world_size} ranks: "
        f"{train.num_samples:,} training and {held_out.num_samples:,} held-out images"
    )
    result = _METHODS[arguments.method](arguments, loaded.encoder, train, held_out, say)
    if ranks.rank == 0:
        print(describe(result), flush=True)
        facts = {"init": loaded.source, "step": loaded.step, "precision": arguments.precision}
        facts |= {"train": train.name, "held_out": held_out.name, "world_size": ranks.world_size}
        _keep(arguments, result, facts, say)
    dist.barrier()
    dist.destroy_process_group()
    return 0


def _open(arguments: Namespace, rank: int) -> tuple[ShardIndex, ShardIndex]:
    for option, path in (("--data", arguments.data), ("--val", arguments.val)):
        if path and path.startswith(PIPE):
            raise BadInput(f"{option}: a pipe: gives no exact set of samples; evaluation takes shards with an index")
    train = ShardIndex.open(arguments.data, "train", check_remote_shards=rank == 0)
    held_out = ShardIndex.open(arguments.val or arguments.data, "val", check_remote_shards=rank == 0)
    return train, held_out


def _knn(arguments: Namespace, encoder: Encoder, train: ShardIndex, held_out: ShardIndex, say) -> dict[str, Any]:
    return knn_on_shards(
        encoder,
        train,
        held_out,
        ks=arguments.k,
        temperatures=arguments.temperature,
        pools=arguments.pool,
        batch=arguments.batch,
        workers=arguments.workers,
        max_train=arguments.max_train,
        max_held_out=arguments.max_val,
        say=say,
    )


_METHODS = {"knn": _knn}


def _keep(arguments: Namespace, result: dict[str, Any], facts: dict[str, Any], say) -> None:
    if arguments.output:
        write_text(arguments.output, json.dumps(facts | result, indent=2) + "\n")
        say(f"written: {arguments.output}")
    if facts["step"] is not None and append_event(arguments.init, "evaluation", **facts | result):
        say(f"noted in {arguments.init / 'metrics.jsonl'}")
