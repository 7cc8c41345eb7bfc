"""What the ranks of `benchmarks.scaling` do: they keep engines between the calls, and train one a step when asked."""

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.engine.traffic import Call, counted_traffic
from trainer.data.config import DataConfig
from trainer.data.loader import LaneLoader
from trainer.data.shard_index import ShardIndex
from trainer.engine.config import OptimizerConfig
from trainer.engine.ds_config import Precision, resolve_ds_config
from trainer.engine.engine import FreezingEngine
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM
from trainer.model.masking import mask_noise

RATE = 1e-5
"""Learning rate: small, so that a hundred steps on random images stay ordinary."""
ENDLESS = 10**6


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
_engines: dict[str, tuple[FreezingEngine, Batches]] = {}
"""What this process keeps between the calls, by the name of the case."""


def prepare(case: Case) -> None:
    """Build an engine and keep it. Collective."""
    _engines[case.name] = build_engine(case), _loaded(case, case.shards) if case.shards else made_batches(case)


def train(name: str) -> StepSeconds:
    """One step of the case of that name."""
    return step_on(*_engines[name])


def collective_seconds(name: str, repetitions: int) -> tuple[float, int]:
    """What the collectives of a step cost when nothing else is done and no rank waits for another: the seconds of the
    fastest repetition, and how many collectives there are. Collective."""
    with counted_traffic() as traffic:
        train(name)
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
    while _engines:
        _, (engine, batches) = _engines.popitem()
        close_engine(engine)
        batches.close()


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


def close_engine(engine: FreezingEngine) -> None:
    """Remove DeepSpeed's hooks from the model; its `destroy` forgets two."""
    engine._engine.module_forward_pre_hook.remove()
    engine._engine.module_forward_post_hook.remove()
    engine._engine.destroy()


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
    for first in range(0, ENDLESS * micro_batch, micro_batch):
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
    rank, world_size = dist.get_rank(), dist.get_world_size()
    loader = LaneLoader(
        ShardIndex.open(shards), DataConfig(workers=1, window=8), image_size=case.model.image_size, seed=0,
        global_batch=case.micro_batch * world_size, micro_batch=case.micro_batch, rank=rank, world_size=world_size,
        end_step=ENDLESS,
    )  # fmt: skip
    with closing(iter(loader)) as batches:
        for batch in batches:
            yield batch.images, mask_noise(batch.mask_keys, case.model.num_patches)
