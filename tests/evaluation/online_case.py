"""A small pre-training on the ranks of a pool, with or without evaluations on the way."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.loop.going_on import ask_to_stop_after
from tests.loop.small_training import small_plan, small_training
from trainer.data.cache import open_storage
from trainer.data.storage import Storage
from trainer.evaluation.online import OnlineKnn
from trainer.loop import DONE, STOPPED, Training
from trainer.ranks import Ranks
from trainer.setup import choose_checkpoint
from trainer.storages import Storages
from trainer.tracking.throughput import Throughput

STEPS = 24
EVERY = 6
TRAIN_SAMPLES, SAMPLES = 80, 50
EPOCH = 18  # steps: 150 photographs in batches of 8


def ds_config(stage: int, precision: str) -> dict[str, Any]:
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 200} if stage == 3 else {})
    return {"zero_optimization": zero} | ({"bf16": {"enabled": True}} if precision == "bf16" else {})


def train(
    shards: Path, output: Path, stage: int, precision: str, workers: int, evaluated: bool, until: int | None = None
) -> dict[str, Any]:
    """What a training leaves in this process: its random numbers, its state by parameter, and facts about the
    evaluations. `until`: it is stopped when so many steps are done; with another call it goes on. Runs on a rank."""
    dist.barrier()  # the other rank may still write to an earlier run
    every = {
        "every_steps": EVERY, "path": str(shards / "train.json"), "k": [3, 10], "batch": 16, "workers": 1,
        "train_samples": TRAIN_SAMPLES, "samples": SAMPLES,
    }  # fmt: skip
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(7), random.seed(7), np.random.seed(7)  # noqa: NPY002
    plan = small_plan(
        shards, output, ds_config(stage, precision), Ranks(rank, rank, world_size, world_size),
        train={"epochs": STEPS / EPOCH, "micro_batch": 2, "precision": precision}, optimizer={"warmup_epochs": 0.1},
        checkpoint={"every_steps": 0, "every_epochs": 0},
        tracking={"log_every": 1, "pictures": "never", "tensorboard": evaluated},
        evaluation=every if evaluated else {}, data={"workers": workers},
    )  # fmt: skip
    with small_training(plan, choose_checkpoint(plan, "auto", Storages.shared())) as training:
        found = watch(training)
        if until is not None:
            ask_to_stop_after(training, until)
        assert training.run() == (DONE if until is None else STOPPED)
        state = {
            (kind, fragment.name): tensor.numpy().copy()
            for fragment in training.engine.fragments(owned_only=True)
            for kind, tensor in {"master": fragment.master, **fragment.moments}.items()
        }
        weights = {name: weight.float().numpy() for name, weight in training.engine.whole_weights(training.shapes)}
    randoms = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    dist.barrier()
    return {"state": state, "weights": weights, "randoms": randoms, "found": found}


def watch(training: Training) -> list[dict[str, Any]]:
    """A record of each evaluation: at which step, with how many frozen units, whether the throughput left it out, and
    whether it left every parameter as DeepSpeed had it and closed what it opened."""
    found: list[dict[str, Any]] = []
    knn: OnlineKnn = training.knn
    throughput: Throughput = training.throughput
    evaluate, aside, inside = knn.evaluate, throughput.aside, [0]

    class Aside:
        def __enter__(self) -> None:
            self.context = aside()
            self.context.__enter__()
            inside[0] += 1

        def __exit__(self, *error: Any) -> None:
            inside[0] -= 1
            self.context.__exit__(*error)

    def places() -> list[tuple]:
        parameters: Any = list(training.model.parameters())
        return [(getattr(p, "ds_status", None), p.data_ptr(), p.shape, p.requires_grad, p.grad) for p in parameters]

    def watched(alive: Any) -> dict[str, Any]:
        before, marks, storages = places(), [], []

        def open_and_keep(config: Any) -> Storage:
            storages.append(open_storage(config))
            return storages[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("trainer.evaluation.online.open_storage", open_and_keep)
            result = evaluate(lambda what: (marks.append(what), alive(what)))
        found.append({
            "step": training.step, "frozen_units": training.model.frozen_units, "aside": inside[0] == 1,
            "untouched": places() == before, "marks": len(marks), "result": result,
            "closed": [storage._closed.is_set() for storage in storages],
        })  # fmt: skip
        return result

    knn.evaluate, throughput.aside = watched, Aside  # type: ignore[method-assign, assignment]
    return found
