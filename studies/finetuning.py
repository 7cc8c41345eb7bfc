"""Short fine-tunings of the checkpoints that the main contrast compares, by launch/finetune.py: the third measure."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from studies.pretraining import checkpoint
from studies.results import read_judged, write_judged
from studies.runner import Job, run_missing
from studies.trials import CROP_SCALE, WARMUP_SHARE, Trial
from trainer.data.shard_index import ShardIndex
from trainer.tracking.metrics import read_metrics

STEPS, QUICK_STEPS = 400, 8
BATCH = 64


def finetune_missing(trials: Sequence[Trial], shards: Path, folder: Path, *, at_once: int) -> None:
    """Adds the accuracy on all held-out images to the results of those checkpoints that `Trial.finetuned_at` names and
    that have been judged."""
    steps_per_epoch = ShardIndex.open(shards).num_samples // BATCH
    jobs = {
        (trial, step): _job(trial, step, steps_per_epoch, shards, folder)
        for trial in trials
        for step, judged in read_judged(folder, trial).items()
        if step in trial.finetuned_at and judged.finetune is None
    }
    run_missing(list(jobs.values()), at_once=at_once)
    for (trial, step), job in jobs.items():
        found = read_judged(folder, trial)
        top1 = next(e["top1"] for e in reversed(read_metrics(job.run)) if e["event"] == "evaluation")
        write_judged(folder, trial, found | {step: replace(found[step], finetune=top1)})
        print(f"{trial.name}, step {step}, fine-tuned: {top1:.2%}", flush=True)


def _job(trial: Trial, step: int, steps_per_epoch: int, shards: Path, folder: Path) -> Job:
    start = checkpoint(folder, trial, step)
    recipe = _recipe(trial, (QUICK_STEPS if trial.quick else STEPS) / steps_per_epoch)
    return Job("finetune.py", recipe, ("--data", shards, "--validation", shards / "validation.json", "--init", start),
               folder / "finetuned" / f"{trial.name}-step{step}")  # fmt: skip


def _recipe(trial: Trial, epochs: float) -> dict[str, Any]:
    """Nothing of the regularisation that long fine-tunings need."""
    encoder = {key: trial.model[key] for key in ("image_size", "patch_size", "embed_dim", "depth", "num_heads")}
    return {
        "model": encoder,
        "finetune": {"drop_path": 0.0, "layer_decay": 0.9},
        "optimizer": {"lr": 4e-3, "min_lr": 1e-6, "weight_decay": 0.05, "warmup_epochs": WARMUP_SHARE * epochs},
        "augmentation": {"rand_augment": None, "random_erasing": 0.0, "mixup": 0.0, "cutmix": 0.0},
        "data": {"workers": 0, "crop_scale": CROP_SCALE},
        "train": {"epochs": epochs, "global_batch": BATCH, "seed": trial.seed, "hang_timeout": 0},
        "validation": {"every_epochs": epochs, "batch": 250},
        "tracking": {"log_every": 20, "tensorboard": False},
    }
