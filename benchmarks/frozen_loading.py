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
from benchmarks.tables import Section
from tests.distributed import RankPool
from trainer.data.batches import MicroBatch
from trainer.data.config import DataConfig
from trainer.data.loader import LaneLoader
from trainer.data.shard_index import ShardIndex
from trainer.engine.config import OptimizerConfig
from trainer.engine.engine import FreezingEngine
from trainer.freezing.schedule import saving
from trainer.model.localmim import LocalMIM
from trainer.model.masking import mask_noise

WORLD_SIZES, ZERO_STAGES = (1, 2), (1, 2, 3)
WORKERS = 1
ENDLESS = 10**6  # steps, more than are ever taken
TIMEOUT = 900


@dataclass(frozen=True)
class RankSeconds:
    """One rank at one frozen count, a value for every round."""

    reference: Sequence[float]
    ready: Sequence[float]
    loaded: Sequence[float]
    waited: Sequence[float]
    """Part of `loaded` before the data came."""


def loading_section(case: Case, shards: Path, rounds: int) -> Section:
    """A row for every world size and ZeRO stage."""
    rows = []
    for world_size in WORLD_SIZES:
        with RankPool(world_size) as ranks:
            for stage in ZERO_STAGES:
                by_rank = ranks.run(_measure, case, shards, stage, rounds, timeout=TIMEOUT)
                rows.append([str(world_size), str(stage), *_figures(case, by_rank)])
                print(f"# loader on, {world_size} ranks, ZeRO-{stage}: {' '.join(rows[-1])}", flush=True)
    return Section(
        f"With the loader on: {case.name}",
        f"fp32, micro-batch {case.micro_batch} a rank, one thread and {WORKERS} data worker a rank, photographs from "
        "shards. Wall time of a step on the slowest rank; steps with a micro-batch that lies ready and steps that take "
        f"theirs from the loader, in turn with the reference, {rounds} rounds. Measured with "
        f"{', '.join(map(str, case.counts))} units frozen, between them linear in the FLOPs. *Waiting*: the part of "
        "the step before its data came, unfrozen and at the last count.",
        ["ranks", "ZeRO", "saved, data ready", "saved, loader on", "difference, points", "target", "step", "waiting"],
        rows,
    )


def _figures(case: Case, by_rank: Sequence[dict[int, RankSeconds]]) -> list[str]:
    """The cells of a row after its name."""
    ready, loaded, waiting = {}, {}, []
    for count in case.counts:
        at_count = [rank[count] for rank in by_rank]
        weather = np.mean([rank.reference for rank in at_count], axis=0)
        ready[count] = float(np.median(np.max([rank.ready for rank in at_count], axis=0) / weather))
        loaded[count] = float(np.median(np.max([rank.loaded for rank in at_count], axis=0) / weather))
        waiting.append(float(np.median([np.array(rank.waited) / rank.loaded for rank in at_count])))
    compute, wall = (saving(case.schedule, interpolate(costs, case.flops)) for costs in (ready, loaded))
    seconds = np.median([rank[0].loaded for rank in by_rank])
    return [
        f"{compute:.1%}", f"{wall:.1%}", f"{100 * (wall - compute):+.2f}", "±1",
        f"{seconds:.2f} s", f"{waiting[0]:.1%}, {waiting[-1]:.1%}",
    ]  # fmt: skip


def _measure(case: Case, shards: Path, zero_stage: int, rounds: int) -> dict[int, RankSeconds]:
    """Runs on every rank; by frozen count."""
    torch.manual_seed(0)
    reference = Reference(case)
    resolved = resolved_config(case.micro_batch, zero_stage, dist.get_world_size())
    engine = FreezingEngine(LocalMIM(case.model), resolved, OptimizerConfig())
    found = {}
    with closing(iter(_loader(case, shards))) as batches:
        for count in case.counts:
            freeze_to(engine, count)
            found[count] = _rounds(engine, reference, batches, rounds)
    return found


def _loader(case: Case, shards: Path) -> LaneLoader:
    return LaneLoader(
        ShardIndex.open(shards), DataConfig(workers=WORKERS, window=8), image_size=case.model.image_size, seed=0,
        global_batch=case.micro_batch * dist.get_world_size(), micro_batch=case.micro_batch,
        rank=dist.get_rank(), world_size=dist.get_world_size(), end_step=ENDLESS,
    )  # fmt: skip


def _rounds(engine: FreezingEngine, reference: Reference, batches: Iterator[MicroBatch], rounds: int) -> RankSeconds:
    """One more round comes first and is thrown away: it fills caches and buffers."""
    ready = next(batches)
    columns: list[list[float]] = []
    for _ in range(rounds + 1):
        dist.barrier()
        weather = reference.seconds(time.perf_counter)
        dist.barrier()
        with_data_ready = sum(_step(engine, ready))
        dist.barrier()
        start = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - start
        columns.append([weather, with_data_ready, waited + sum(_step(engine, batch)), waited])
    return RankSeconds(*(list(column) for column in zip(*columns[1:], strict=True)))


def _step(engine: FreezingEngine, batch: MicroBatch) -> list[float]:
    noise = mask_noise(batch.mask_keys, engine.model.num_patches)
    return timed_step(engine, batch.images, noise, time.perf_counter)
