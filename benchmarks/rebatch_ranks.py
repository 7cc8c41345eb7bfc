"""What the ranks of `benchmarks.rebatch` do: time a step of one global batch in micro-batches of several sizes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from benchmarks.freezing_cases import freeze_to, random_batch
from benchmarks.rounds import Costs, take_turns
from tests.engine.cases import close
from trainer.engine.config import OptimizerConfig
from trainer.engine.ds_config import ResolvedDsConfig, resolve_ds_config
from trainer.engine.engine import FreezingEngine
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM


@dataclass(frozen=True)
class Case:
    """A model and the images that each rank takes per step."""

    name: str
    model: ModelConfig
    share: int

    @property
    def sizes(self) -> list[int]:
        """Micro-batches that divide the share into 2^n parts, the smallest first."""
        return [size for size in (2**power for power in range(self.share.bit_length())) if self.share % size == 0]

    def resolved(self, stage: int, world_size: int, micro_batch: int = 1) -> ResolvedDsConfig:
        """fp32, without clipping, in small buckets, which such models fill."""
        return resolve_ds_config(
            {"zero_optimization": {"stage": stage, "reduce_bucket_size": 5_000_000}},
            source="benchmark", world_size=world_size, global_batch=self.share * world_size, micro_batch=micro_batch,
            precision=None, clip_grad=0.0,
        )  # fmt: skip


def step_seconds(case: Case, stage: int, frozen_units: int, sizes: Sequence[int], rounds: int) -> dict[str, Costs]:
    """Wall time of a step in micro-batches of each size, by size as text. Runs on every rank.

    The sizes take turns in one engine, whose micro-batch changes between two steps as at a freeze."""
    torch.manual_seed(0)
    engine = FreezingEngine(LocalMIM(case.model), case.resolved(stage, dist.get_world_size()), OptimizerConfig())
    freeze_to(engine, frozen_units)
    images, noise = random_batch(case.model, case.share)

    def step_of(size: int) -> Callable[[], float]:
        def step() -> float:
            engine.set_micro_batch(size)
            dist.barrier()
            start = time.perf_counter()
            for micro_batch in zip(images.split(size), noise.split(size), strict=True):
                loss, _ = engine.forward(*micro_batch)
                engine.backward(loss)
                engine.step()
            dist.barrier()
            return time.perf_counter() - start

        return step

    found = take_turns({str(size): step_of(size) for size in sizes}, rounds)
    close(engine)
    return found
