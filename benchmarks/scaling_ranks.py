"""What the ranks of `benchmarks.scaling` do: they keep engines between the calls, and train one a step when asked."""

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import astuple, dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.loaded_batches import AHEAD, loaded_batches
from tests.engine.cases import close
from tests.engine.traffic import Call, counted_traffic
from trainer.engine.config import OptimizerConfig
from trainer.engine.ds_config import Precision, resolve_ds_config
from trainer.engine.engine import FreezingEngine
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM
from trainer.model.masking import mask_noise

RATE = 1e-5
"""Learning rate: small, so that a hundred steps on random images stay ordinary."""
LOADED_STEPS = 3
"""Timed in a row where the loader is on, after those that do not count."""


@dataclass(frozen=True)
class Case:
    """What is trained. `micro_batch`: images per rank; `zero`: further keys of `zero_optimization`; `shards`: where the
    loader reads, None for images that are made on the fly."""

    name: str
    model: ModelConfig
    micro_batch: int
    stage: int = 0
    precision: Precision = "fp32"
    zero: Mapping[str, Any] = field(default_factory=dict)
    shards: Path | None = None


@dataclass(frozen=True)
class StepSeconds:
    """Where one rank's step went. Collectives are inside: of ZeRO-3 in all three, of the others in the last two."""

    data: float
    forward: float
    backward: float
    update: float

    @property
    def total(self) -> float:
        return self.data + self.forward + self.backward + self.update


Batches = Generator[tuple[torch.Tensor, torch.Tensor], None, None]


@dataclass(frozen=True)
class Training:
    """What this process keeps of a case between the calls."""

    case: Case
    engine: FreezingEngine
    batches: Batches

    def step(self) -> StepSeconds:
        return step_on(self.engine, self.batches)


_trainings: dict[str, Training] = {}
"""By the name of the case."""


def prepare(case: Case) -> None:
    """Build an engine and keep it. Collective."""
    batches = _loaded(case, case.shards) if case.shards else made_batches(case)
    _trainings[case.name] = Training(case, build_engine(case), batches)


def train(name: str) -> StepSeconds:
    """One step of the case of that name. With the loader on, the mean of `LOADED_STEPS` in a row, before which as many
    others are taken as had their data made in the turns of others."""
    training = _trainings[name]
    if training.case.shards is None:
        return training.step()
    steps = [astuple(training.step()) for _ in range(AHEAD + LOADED_STEPS)][AHEAD:]
    return StepSeconds(*(sum(part) / LOADED_STEPS for part in zip(*steps, strict=True)))


def collective_seconds(name: str, repetitions: int) -> tuple[float, int]:
    """What the collectives of a step cost when nothing else is done and no rank waits for another: the seconds of the
    fastest repetition, and how many collectives there are. Collective."""
    with counted_traffic() as traffic:
        _trainings[name].step()
    again = [_again(call) for call in traffic.calls]
    seconds = []
    for _ in range(repetitions + 1):  # the first touches the memory
        dist.barrier()
        start = time.perf_counter()
        for collective in again:
            collective()
        seconds.append(time.perf_counter() - start)
    return min(seconds), len(traffic.calls)


def forget() -> None:
    """Drop all engines, and the loaders with their workers."""
    while _trainings:
        _, training = _trainings.popitem()
        close(training.engine)
        training.batches.close()


def build_engine(case: Case) -> FreezingEngine:
    """Collective."""
    torch.manual_seed(0)
    raw = {"zero_optimization": {"stage": case.stage, "overlap_comm": False, **case.zero}}
    resolved = resolve_ds_config(
        raw | ({} if case.precision == "fp32" else {case.precision: {"enabled": True}}),
        source="benchmark", world_size=dist.get_world_size(), global_batch=case.micro_batch * dist.get_world_size(),
        micro_batch=case.micro_batch, precision=None, clip_grad=0,
    )  # fmt: skip
    return FreezingEngine(LocalMIM(case.model), resolved, OptimizerConfig())


def step_on(engine: FreezingEngine, batches: Batches) -> StepSeconds:
    """One training step on the next of the batches."""
    engine.set_learning_rates([RATE] * engine.model.num_units)
    times = [time.perf_counter()]
    images, noise = next(batches)
    times.append(time.perf_counter())
    loss, _ = engine.forward(images, noise)
    times.append(time.perf_counter())
    engine.backward(loss)
    times.append(time.perf_counter())
    engine.step()
    times.append(time.perf_counter())
    return StepSeconds(*(after - before for before, after in pairwise(times)))


def made_batches(case: Case) -> Batches:
    """Random images made on the fly: a step takes the same time on any."""
    size, micro_batch = case.model.image_size, case.micro_batch
    generator = torch.Generator().manual_seed(dist.get_rank())
    for first in count(0, micro_batch):
        images = torch.randint(0, 256, (micro_batch, 3, size, size), dtype=torch.uint8, generator=generator)
        yield images, mask_noise(torch.arange(first, first + micro_batch), case.model.num_patches)


def _again(call: Call) -> Callable[[], object]:
    """The same collective on tensors of its own."""
    whole = torch.zeros(call.elements, dtype=call.dtype)
    part = torch.zeros(call.elements // dist.get_world_size(), dtype=call.dtype)
    collectives: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(whole, part),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(part, whole),
        "reduce": lambda: dist.reduce(whole, 0),
    }
    return collectives[call.name]


def _loaded(case: Case, shards: Path) -> Batches:
    for batch in loaded_batches(shards, case.model, case.micro_batch):
        yield batch.images, mask_noise(batch.mask_keys, case.model.num_patches)
