"""A tiny fine-tuning on real ranks: the real plan, loader, engine, validation and files, and no launcher."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.loop.going_on import ask_to_stop_after
from trainer.finetuning.plan import FinetunePlan, plan_finetune
from trainer.finetuning.recipe import FinetuneRecipe
from trainer.finetuning.training import Finetuning
from trainer.model.config import ModelConfig
from trainer.ranks import Ranks
from trainer.recipe import parse_kind
from trainer.setup import choose_checkpoint
from trainer.stopping import SIGNALS, StopSignals
from trainer.storages import Storages
from trainer.tracking.metrics import read_metrics
from trainer.watchdog import Watchdog

ENCODER: dict[str, Any] = {"image_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
PRETRAINED = ModelConfig(**ENCODER, stages=[0, 1], scales=[2.0, 1.0], decoder_dim=16, decoder_heads=2)
EPOCH = 6
"""Steps: 97 images in batches of 16."""

SMALL: dict[str, dict[str, Any]] = {
    "model": ENCODER,
    "optimizer": {"lr": 2e-3, "warmup_epochs": 0.5},
    "data": {"workers": 0, "window": 4, "lanes": 4},
    "train": {"epochs": 1, "global_batch": 16, "micro_batch": 4},
    "checkpoint": {"every_epochs": 0},
    "tracking": {"log_every": 1, "tensorboard": False},
    "finetune": {"average": 0.9},
    "augmentation": {},
    "validation": {"batch": 5},
}
OFF = {"rand_augment": None, "random_erasing": 0, "mixup": 0, "cutmix": 0, "label_smoothing": 0}
"""A section `augmentation` that does nothing."""


def small_tree(data: Path, init: Path, **changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The recipe. `changes`: sections, with the keys that are other than above."""
    own = {"data": {"path": str(data)}, "finetune": {"init": str(init)}}
    return {
        name: keys | own.get(name, {}) | changes.get(name, {}) for name, keys in SMALL.items()
    }  # fmt: skip


def small_plan(
    data: Path,
    init: Path,
    output: Path,
    stage: int = 2,
    precision: str = "fp32",
    ranks: Ranks | None = None,
    **changes: dict[str, Any],
) -> FinetunePlan:
    """Of this rank, where the process group is there."""
    if ranks is None:
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        ranks = Ranks(rank, rank, size, size)
    output.mkdir(parents=True, exist_ok=True)
    ds_config = output / f"given_{ranks.rank}.json"
    section = {} if precision == "fp32" else {precision: {"enabled": True}}
    ds_config.write_text(json.dumps({"zero_optimization": {"stage": stage, "reduce_bucket_size": 5000}} | section))
    return plan_finetune(
        parse_kind(FinetuneRecipe, small_tree(data, init, **changes), "test"), ds_config, output, ranks
    )


@contextmanager
def small_finetuning(data: Path, init: Path, output: Path, **settings: Any) -> Iterator[Finetuning]:
    """On a rank of a pool: a run that has not begun, or goes on, before its first step."""
    plan = small_plan(data, init, output, **settings)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    watchdog = Watchdog(0, output / "flight_recorder")
    storages = Storages.shared()
    checkpoint = choose_checkpoint(plan, "auto", storages)
    training = Finetuning(plan, torch.device("cpu"), storages, checkpoint, watchdog, StopSignals())
    try:
        yield training
    finally:
        watchdog.close()
        training.logbook.close()  # and not `training.close`, which would end the pool's process group
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run_small(data: Path, init: Path, output: Path, until: int | None = None, **settings: Any) -> int:
    """Start a run, or go on with it, on every rank of a pool. `until`: ask for a stop when so many steps are done."""
    with small_finetuning(data, init, output, **settings) as training:
        if until is not None:
            ask_to_stop_after(training, until)
        return training.run()


def start(data: Path, init: Path, output: Path, until: int | None, settings: dict[str, Any]) -> int:
    """`run_small` as a pool takes it."""
    return run_small(data, init, output, until, **settings)


def by_step(output: Path, event: str, *fields: str) -> dict[int, list[Any]]:
    """Fields of the events of a kind, by step."""
    return {e["step"]: [e[field] for field in fields] for e in read_metrics(output) if e["event"] == event}
