"""Freezing by measurement on the real engine, and whole trainings that do so: runs on the ranks."""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.engine.cases import Setting, close, engine_for, weights
from tests.engine.localmim_case import CONFIG, batch
from tests.loop.small_training import small_plan, small_training
from trainer.checkpoint.manifest import directory_name, list_checkpoints
from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.state_file import MASTER
from trainer.data.micro_batches import MicroBatches
from trainer.engine.frozen import FrozenArchive
from trainer.freezing.config import FreezingConfig
from trainer.freezing.controller import FreezeController
from trainer.freezing.plasticity import PlasticityPolicy
from trainer.freezing.probe import Probe
from trainer.freezing.schedule import FreezeSchedule
from trainer.model.localmim import LocalMIM
from trainer.model.masking import mask_noise
from trainer.ranks import Ranks
from trainer.setup import choose_checkpoint
from trainer.storages import Storages
from trainer.tracking.metrics import read_metrics

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STEPS, STILL_FROM = 20, 6
PROBE = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(9), dtype=torch.uint8)


def guided_by(setting: Setting, units_that_stop: int) -> dict[str, Any]:
    """Train at a constant rate; from step `STILL_FROM` on the first units have none, and so stop changing."""
    freezing = FreezingConfig(how="plasticity", probe_every=2, patience=2, cool_down=1, tolerance=0.1, at_most=1.0)
    schedule = FreezeSchedule(freezing, CONFIG.num_blocks, total_steps=STEPS, warmup_steps=2, lr=1e-3, min_lr=1e-3)
    torch.manual_seed(0)
    model = LocalMIM(CONFIG)
    found: dict[str, Any] = {"plasticity": {}, "frozen": []}
    with engine_for(model, setting) as engine:
        probe = Probe(CONFIG, PROBE, torch.device("cpu"), DTYPES[setting.precision])
        whole = MicroBatches.always(engine.resolved.micro_batch)
        controller = FreezeController(PlasticityPolicy(schedule), whole, engine, FrozenArchive(), probe)
        for step in range(STEPS):
            if controller.is_probed(step):
                found["plasticity"][step] = controller.measure(step)
            if controller.is_due(step):
                controller.freeze(step)
            stopped = units_that_stop if step >= STILL_FROM else 0
            rates = controller.policy.learning_rates(step)
            engine.set_learning_rates([0.0 if u < stopped and rate else rate for u, rate in enumerate(rates)])
            loss, _ = engine.forward(*batch(step, dist.get_rank()))
            engine.backward(loss)
            engine.step()
            found["frozen"].append(model.frozen_units)
        found["state"] = controller.state()
        found["reference"] = sorted(controller.reference)
    return found


def movements(setting: Setting) -> tuple[list[float | None], list[float]]:
    """What the probe says after three steps, two of them with unit 1's rate at 0, and the same from whole copies of the
    model before and after."""
    torch.manual_seed(0)
    model = LocalMIM(CONFIG)
    with engine_for(model, setting) as engine:
        probe = Probe(CONFIG, PROBE, torch.device("cpu"), DTYPES[setting.precision])
        assert probe.measure(engine, 0) == [None] * CONFIG.num_units
        before = weights(engine)
        for step in range(2):
            engine.set_learning_rates([0.0 if unit == 2 else 1e-2 for unit in range(CONFIG.num_units)])
            loss, _ = engine.forward(*batch(step, dist.get_rank()))
            engine.backward(loss)
            engine.step()
        after = weights(engine)
        told = probe.measure(engine, 0)
    old, new = LocalMIM(CONFIG), LocalMIM(CONFIG)
    for copy, values in ((old, before), (new, after)):
        copy.load_state_dict(values)
        copy.to(DTYPES[setting.precision])
    noise = mask_noise(torch.arange(3), model.num_patches)
    with torch.no_grad():
        tokens, moved = old.embed(PROBE, noise), new.embed(PROBE, noise)
        expected = [_ratio(moved, tokens, torch.zeros_like(tokens))]
        for old_block, new_block in zip(old.blocks, new.blocks, strict=True):
            output = old_block(tokens)
            expected.append(_ratio(new_block(tokens), output, tokens))
            tokens = output
    return told, expected


def _ratio(now: torch.Tensor, before: torch.Tensor, given: torch.Tensor) -> float:
    return ((now.float() - before.float()).norm() / (before.float() - given.float()).norm()).item()


def train(
    shards: Path,
    output: Path,
    ds_config: dict[str, Any],
    freezing: dict[str, Any],
    resume_from: tuple[Path, int] | None = None,
    **changes: dict[str, Any],
) -> dict[str, Any]:
    """A whole training, from the start or from the checkpoint of a step of another run; what it told and left."""
    ranks = Ranks(dist.get_rank(), dist.get_rank(), dist.get_world_size(), dist.get_world_size())
    keys: dict[str, dict[str, Any]] = {
        "train": {"epochs": 26 / 18, "global_batch": 8},
        "optimizer": {"warmup_epochs": 4 / 18},
        "checkpoint": {"every_steps": 1, "keep_last": 99},
        "freezing": freezing,
    }
    plan = small_plan(shards, output, ds_config, ranks=ranks, **(keys | changes))
    if resume_from and ranks.rank == 0:
        source, step = resume_from
        name = Path("checkpoints") / directory_name(step)
        shutil.copytree(source / name, output / name)
        shutil.copy(source / "metrics.jsonl", output)
    dist.barrier()
    checkpoint = choose_checkpoint(plan, "auto", Storages.shared())
    assert (checkpoint is not None) == (resume_from is not None)
    with small_training(plan, checkpoint) as training:
        assert training.run() == 0
        state = training.controller.state()
        close(training.engine)
    dist.barrier()
    return {"events": read_metrics(output), "state": state}


def saved_weights(run: Path) -> dict[str, torch.Tensor]:
    """fp32 weights of a run's newest checkpoint."""
    checkpoint = Checkpoint(list_checkpoints(run / "checkpoints")[0])
    return {name: checkpoint.read(MASTER, name, 0, checkpoint.numel(name)) for name in checkpoint.manifest.shapes}
