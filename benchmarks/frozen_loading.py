"""Whether the saving survives the loader: step times with data that lie ready and with data from the shards."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.freezing_cases import Case, Reference, freeze_to, interpolate, resolved_config, timed_step
from benchmarks.loaded_batches import AHEAD, WORKERS, loaded_batches
from benchmarks.tables import Section
from tests.distributed import RankPool
from tests.engine.cases import close
from trainer.data.batches import MicroBatch
from trainer.engine.config import OptimizerConfig
from trainer.engine.engine import FreezingEngine
from trainer.freezing.schedule import saving
from trainer.model.localmim import LocalMIM
from trainer.model.masking import mask_noise

WORLD_SIZES, ZERO_STAGES = (1, 2), (1, 2, 3)
STEPS = 8
"""Timed in a row, of either kind."""
REFERENCES = 3
TIMEOUT = 900


@dataclass(frozen=True)
class RankSeconds:
    """One rank at one frozen count. `reference`: of a step, the mean before and after; the others: of each step."""

    reference: float
    loaded: Sequence[float]
    waited: Sequence[float]
    """Part of `loaded` before the data came."""
    ready: Sequence[float]


def loading_section(case: Case, shards: Path) -> Section:
    """A row for every world size and ZeRO stage."""
    rows = []
    for world_size in WORLD_SIZES:
        with RankPool(world_size) as ranks:
            for stage in ZERO_STAGES:
                by_rank = ranks.run(_measure, case, shards, stage, timeout=TIMEOUT)
                rows.append([str(world_size), str(stage), *saving_cells(case, by_rank)])
                print(f"# loader on, {world_size} ranks, ZeRO-{stage}: {' '.join(rows[-1])}", flush=True)
    return Section(
        f"With the loader on: {case.name}",
        f"fp32, micro-batch {case.micro_batch} a rank, one thread and {WORKERS} data worker a rank, photographs from "
        f"shards. Wall time of a step on the slowest rank, medians of {STEPS} steps in a row that take their "
        f"micro-batch from the loader, after {AHEAD} that do not count since theirs had been made before, and of "
        f"{STEPS} with one that lies ready; over that of a plain model that never freezes, before and after. Measured "
        f"with {', '.join(map(str, case.counts))} units frozen, between them linear in the FLOPs. *Waiting*: the part "
        "of the step before its data came, unfrozen and at the last count.",
        ["ranks", "ZeRO", "saved, data ready", "saved, loader on", "difference, points", "target", "step", "waiting"],
        rows,
    )


def saving_cells(case: Case, by_rank: Sequence[dict[int, RankSeconds]]) -> list[str]:
    """The cells of a row after its name. `by_rank`: by frozen count, the case's."""
    ready, loaded, waiting = {}, {}, []
    for count in case.counts:
        at_count = [rank[count] for rank in by_rank]
        weather = np.mean([rank.reference for rank in at_count])
        ready[count] = float(np.median(np.max([rank.ready for rank in at_count], axis=0)) / weather)
        loaded[count] = float(np.median(np.max([rank.loaded for rank in at_count], axis=0)) / weather)
        waiting.append(float(np.median([np.array(rank.waited) / rank.loaded for rank in at_count])))
    compute, wall = (saving(case.schedule, interpolate(costs, case.flops)) for costs in (ready, loaded))
    seconds = np.median([rank[0].loaded for rank in by_rank])
    return [
        f"{compute:.1%}", f"{wall:.1%}", f"{100 * (wall - compute):+.2f}", "±1",
        f"{seconds:.2f} s", f"{waiting[0]:.1%}, {waiting[-1]:.1%}",
    ]  # fmt: skip


def _measure(case: Case, shards: Path, zero_stage: int) -> dict[int, RankSeconds]:
    """Runs on every rank; by frozen count."""
    torch.manual_seed(0)
    reference = Reference(case)
    resolved = resolved_config(case.micro_batch, zero_stage, dist.get_world_size())
    engine = FreezingEngine(LocalMIM(case.model), resolved, OptimizerConfig())
    found = {}
    with closing(loaded_batches(shards, case.model, case.micro_batch)) as batches:
        ready = next(batches)
        for count in case.counts:
            freeze_to(engine, count)
            _ready_steps(engine, ready, 1)  # fills caches and buffers, and gives the worker time to get ahead
            found[count] = _seconds(engine, reference, batches, ready)
    close(engine)
    return found


def _seconds(
    engine: FreezingEngine, reference: Reference, batches: Iterator[MicroBatch], ready: MicroBatch
) -> RankSeconds:
    """The reference runs while the loader has nothing to do, as the steps with ready data do."""
    before = _reference_seconds(reference)
    loaded = [_loaded_step(engine, batches) for _ in range(AHEAD + STEPS)][AHEAD:]
    _ready_steps(engine, ready, 1)
    with_data_ready = _ready_steps(engine, ready, STEPS)
    weather = (before + _reference_seconds(reference)) / 2
    return RankSeconds(weather, [total for total, _ in loaded], [waited for _, waited in loaded], with_data_ready)


def _reference_seconds(reference: Reference) -> float:
    dist.barrier()
    return float(np.mean([reference.seconds(time.perf_counter) for _ in range(REFERENCES)]))


def _loaded_step(engine: FreezingEngine, batches: Iterator[MicroBatch]) -> tuple[float, float]:
    """Seconds of the step and of the part of them before its data came."""
    dist.barrier()
    start = time.perf_counter()
    batch = next(batches)
    waited = time.perf_counter() - start
    return waited + _step(engine, batch), waited


def _ready_steps(engine: FreezingEngine, batch: MicroBatch, steps: int) -> list[float]:
    seconds = []
    for _ in range(steps):
        dist.barrier()
        seconds.append(_step(engine, batch))
    return seconds


def _step(engine: FreezingEngine, batch: MicroBatch) -> float:
    noise = mask_noise(batch.mask_keys, engine.model.num_patches)
    return sum(timed_step(engine, batch.images, noise, time.perf_counter))
