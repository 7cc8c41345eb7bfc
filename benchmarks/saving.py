"""What `benchmarks.checkpoint` measures, on the ranks: saves in the background and in the way, checking, loading."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from launch.run_arguments import RECIPES
from trainer.checkpoint.background import BackgroundSaves
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.find import verify_together
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.writer import save_checkpoint
from trainer.engine.ds_config import resolve_ds_config
from trainer.engine.engine import FreezingEngine
from trainer.engine.frozen import FrozenArchive
from trainer.model.localmim import LocalMIM
from trainer.recipe import load_recipe

ROUNDS = 3


@dataclass
class Timings:
    """Seconds on one rank, medians over the rounds; bytes of its masters and moments."""

    state_bytes: int
    first_stall: float
    stall: float
    background: float
    waiting: float
    checking: float
    loading: float


def measure(folder: str, quick: bool) -> Timings:
    """Runs on every rank; each has the same `folder`."""
    recipe = load_recipe("demo" if quick else "vit_base", [], RECIPES)
    world_size, root = dist.get_world_size(), Path(folder)
    resolved = resolve_ds_config(
        {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}},
        source="benchmark", world_size=world_size, global_batch=world_size, micro_batch=1, precision=None, clip_grad=0,
    )  # fmt: skip
    model = LocalMIM(recipe.model)
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    engine, archive = FreezingEngine(model, resolved, recipe.optimizer), FrozenArchive()
    engine.load_resume_state({**engine.resume_state(), "optimizer_steps": 1})  # moments, without a training step
    for fragment in engine.fragments(owned_only=True):
        for moment in fragment.moments.values():
            torch.nn.init.normal_(moment)

    def manifest(step: int) -> Manifest:
        about = recipe.model_dump(mode="json")
        return Manifest(step, 0, world_size, 1, "bf16", about, "", engine.resume_state(), shapes, {})

    saves = BackgroundSaves(root / "background", CheckpointConfig(keep_last=1), lambda reason: None)
    for step in range(ROUNDS + 1):
        dist.barrier()
        saves.save(manifest(step), engine, archive)
        saves.wait()
    first, *reports = saves.reports()

    def save_while_training_waits() -> None:
        save_checkpoint(root / "waiting", manifest(1), engine, archive, CheckpointConfig(keep_last=1))

    directory = reports[-1].path

    def load() -> None:
        checkpoint = Checkpoint(directory)
        checkpoint.load_weights(LocalMIM(recipe.model))
        checkpoint.load_engine(engine)

    return Timings(
        state_bytes=engine.optimizer_bytes(),
        first_stall=first.stall_seconds,
        stall=statistics.median(report.stall_seconds for report in reports),
        background=statistics.median(report.seconds - report.stall_seconds for report in reports),
        waiting=_median_seconds(save_while_training_waits),
        checking=_median_seconds(lambda: verify_together(directory, print)),
        loading=_median_seconds(load),
    )


def _median_seconds(action: Callable[[], object]) -> float:

    seconds = []
    for _ in range(ROUNDS):
        dist.barrier()
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
