"""What takes turns in `benchmarks.step`: the plain step, ours as bare PyTorch, and ours through DeepSpeed."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.freezing_cases import resolved_config
from benchmarks.plain_step import PlainLocalMIM, PlainTraining
from trainer.engine.config import OptimizerConfig
from trainer.engine.ds_config import Precision
from trainer.engine.engine import FreezingEngine
from trainer.engine.groups import parameter_groups
from trainer.engine.process_group import join_process_group
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM
from trainer.tracking.throughput import measure_gemm_rate

RATE = 1e-5
"""Learning rate: small, so that a hundred steps on the same images stay ordinary."""
OPTIMIZER = OptimizerConfig()


@dataclass(frozen=True)
class Batch:
    """What a micro-batch is to either side. The plain step's pixels are normalised beforehand, at nobody's cost."""

    images: Tensor
    pixels: Tensor
    noise: Tensor


Step = Callable[[Batch], object]


def make_batch(model: LocalMIM, micro_batch: int) -> Batch:
    """Random images: a step takes the same time on any."""
    size = model.config.image_size
    images = torch.randint(0, 256, (micro_batch, 3, size, size), dtype=torch.uint8)
    pixels = (images.float() / 255 - model.mean) / model.std
    return Batch(images, pixels, torch.rand(micro_batch, model.num_patches))


def join_one_rank(folder: str) -> None:
    """Make this process the only rank of a process group that meets in `folder`."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    join_process_group(init_method=f"file://{folder}/rendezvous")


def plain_steps(config: ModelConfig, weights: Mapping[str, Tensor]) -> tuple[Step, Step]:
    """The baseline, and the same with HOG's magnitudes written out by hand."""
    model = PlainLocalMIM(config)
    model.load_state_dict(weights)
    training = PlainTraining(model, RATE, OPTIMIZER.weight_decay, OPTIMIZER.betas)

    def step(batch: Batch, *, by_hand: bool) -> object:
        training.magnitudes_by_hand(by_hand)
        return training.step(batch.pixels, batch.noise)

    return partial(step, by_hand=False), partial(step, by_hand=True)


def bare_step(config: ModelConfig, weights: Mapping[str, Tensor]) -> Step:
    """Our model and the engine's AdamW without DeepSpeed around them."""
    model = LocalMIM(config)
    model.load_state_dict(weights)
    groups = [
        {"params": list(group.parameters), "weight_decay": OPTIMIZER.weight_decay if group.decayed else 0.0}
        for group in parameter_groups(model)
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=OPTIMIZER.betas, foreach=True)

    def step(batch: Batch) -> None:
        loss, _ = model(batch.images, batch.noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def engine_step(config: ModelConfig, weights: Mapping[str, Tensor], stage: int, precision: Precision) -> Step:
    """The training step of a run on one rank."""
    model = LocalMIM(config)
    model.load_state_dict(weights)
    resolved = resolved_config(micro_batch=1, zero_stage=stage, world_size=1, precision=precision)
    engine = FreezingEngine(model, resolved, OPTIMIZER)
    engine.set_learning_rates([RATE] * model.num_units)

    def step(batch: Batch) -> None:
        loss, _ = engine.forward(batch.images, batch.noise)
        engine.backward(loss)
        engine.step()

    return step


def seconds_per_image(step: Step, batch: Batch) -> Callable[[], float]:
    """A contender for `rounds.take_turns`."""

    def measure() -> float:
        start = time.perf_counter()
        step(batch)
        return (time.perf_counter() - start) / len(batch.images)

    return measure


def gemm_seconds_per_flop(dtype: torch.dtype) -> Callable[[], float]:
    """The limit as a contender: a large matrix product on as many threads as torch uses now."""
    return lambda: 1 / measure_gemm_rate(torch.device("cpu"), dtype)
