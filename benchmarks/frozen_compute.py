"""Compute time of a step at every frozen count, and what that makes of a whole run.

A freeze cannot be undone, so two counts never meet in one round. Each is measured against the same reference instead, a
plain model that never freezes, in turn with it; that divides the machine's weather out."""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.freezing_cases import (
    PARTS,
    Case,
    Reference,
    freeze_to,
    interpolate,
    random_batch,
    resolved_config,
    timed_step,
)
from benchmarks.published_freezing import PublishedFreezing, published_flops
from benchmarks.tables import Section
from tests.distributed import RankPool
from trainer.engine.config import OptimizerConfig
from trainer.engine.ds_config import Precision
from trainer.engine.engine import FreezingEngine
from trainer.freezing.schedule import saving
from trainer.model.flops import step_flops
from trainer.model.localmim import LocalMIM

MODELS: dict[str, type[LocalMIM]] = {"here": LocalMIM, "as published": PublishedFreezing}
TIMEOUT = 900


@dataclass(frozen=True)
class StepCosts:
    """What the parts of a step cost at each measured frozen count, in steps of the reference; medians over rounds.

    `flops`: of the model that was measured, of one image's step by frozen units, 0 … depth."""

    case: Case
    precision: Precision
    flops: Sequence[int]
    parts: Mapping[int, Sequence[float]]

    def by_count(self, chosen: Sequence[str] = PARTS) -> list[float]:
        """The cost of these parts together at every frozen count 0 … depth."""
        columns = [PARTS.index(part) for part in chosen]
        return interpolate({k: sum(costs[c] for c in columns) for k, costs in self.parts.items()}, self.flops)

    def saving(self, chosen: Sequence[str] = PARTS) -> float:
        """Fraction of these parts' cost that freezing saves over the run."""
        return saving(self.case.schedule, self.by_count(chosen))


def measure_costs(case: Case, precision: Precision, rounds: int) -> dict[str, StepCosts]:
    """Walk each of `MODELS` through the frozen counts, on one rank and one thread."""
    walks = [[name] for name in MODELS] if case.one_at_a_time else [list(MODELS)]
    parts: dict[str, dict[int, Sequence[float]]] = {name: {} for name in MODELS}
    for names in walks:
        with RankPool(1) as ranks:
            ranks.run(_begin, case, names, precision, timeout=TIMEOUT)
            for count in case.counts:
                # a run spends half its time unfrozen, and all else is held against that
                at_count = ranks.run(_measure, count, rounds if count else 2 * rounds, timeout=TIMEOUT)[0]
                for name, costs in at_count.items():
                    parts[name][count] = costs
                print(f"# {case.name}, {precision}, {' and '.join(names)}: {count} units frozen", flush=True)
    flops = {"here": case.flops, "as published": published_flops(case.model)}
    return {name: StepCosts(case, precision, flops[name], by_count) for name, by_count in parts.items()}


class _Walk:
    """The engines and the reference that a rank keeps between two calls."""

    def __init__(self, case: Case, names: Sequence[str], precision: Precision):
        torch.manual_seed(0)
        self.reference = Reference(case, precision)
        resolved = resolved_config(case.micro_batch, zero_stage=1, world_size=1, precision=precision)
        self.engines = {name: FreezingEngine(MODELS[name](case.model), resolved, OptimizerConfig()) for name in names}
        self.batch = random_batch(case.model, case.micro_batch)

    def measure(self, frozen_units: int, rounds: int) -> dict[str, list[float]]:
        for engine in self.engines.values():
            freeze_to(engine, frozen_units)
            timed_step(engine, *self.batch, time.process_time)  # fills caches and buffers
        seconds: dict[str, list[list[float]]] = {name: [] for name in self.engines}
        for _ in range(rounds):
            weather = self.reference.seconds(time.process_time)
            for name, engine in self.engines.items():
                parts = timed_step(engine, *self.batch, time.process_time)
                seconds[name].append([part / weather for part in parts])
        return {name: np.median(costs, axis=0).tolist() for name, costs in seconds.items()}


_walk: _Walk | None = None


def _begin(case: Case, names: Sequence[str], precision: Precision) -> None:
    """Runs on the rank."""
    global _walk
    _walk = _Walk(case, names, precision)


def _measure(frozen_units: int, rounds: int) -> dict[str, list[float]]:
    """Runs on the rank, after `_begin`."""
    assert _walk is not None
    gc.unfreeze()  # the pool freezes the collector after every call; a freeze relies on it to let the old optimizer go
    return _walk.measure(frozen_units, rounds)


def count_section(costs: Mapping[str, StepCosts]) -> Section:
    """A row for every measured count."""
    case, precision = costs["here"].case, costs["here"].precision
    rows = []
    for count in case.counts:
        row = [str(count)]
        for of_model in costs.values():
            compute, whole = of_model.by_count(PARTS[:2]), of_model.by_count()
            values = (of_model.flops[count] / of_model.flops[0], compute[count] / compute[0], whole[count] / whole[0])
            row += [f"{value:.3f}" for value in values]
        rows.append(row)
    columns = [f"{what}, {name}" for name in costs for what in ("FLOPs", "forward + backward", "step")]
    return Section(
        f"A step of {case.name} by frozen units",
        f"{precision}, micro-batch {case.micro_batch}, ZeRO-1, one rank on one thread, random images. CPU time of a "
        "step over that of the unfrozen one; each measured in turn with a plain model that never freezes, medians of "
        "the rounds. *Step*: forward, backward and update of AdamW.",
        ["frozen units", *columns],
        rows,
    )


def part_section(costs: Mapping[str, StepCosts]) -> Section:
    """Where the saving comes from, and where it stays behind the FLOPs."""
    rows = []
    for name, of_model in costs.items():
        case = of_model.case
        step, schedule, flops = of_model.by_count()[0], case.schedule, of_model.flops
        forward = [step_flops(case.model, units).forward for units in range(case.model.num_units)]
        by_part = {"forward": forward, "backward": [whole - part for whole, part in zip(flops, forward, strict=True)]}
        for part in PARTS:
            of_part = of_model.by_count([part])
            share, saved = of_part[0] / step, of_model.saving([part])
            by_flops = ["–", "–", "–"]
            if part in by_part:
                of_flops, flops_saved = by_part[part][0] / flops[0], saving(schedule, by_part[part])
                by_flops = [f"{of_flops:.1%}", f"{flops_saved:.1%}", f"{100 * of_flops * flops_saved:.2f}"]
            rows.append([f"{name}: {part}", f"{share:.1%}", f"{saved:.1%}", f"{100 * share * saved:.2f}", *by_flops])
    return Section(
        "Where the saving comes from",
        "Of each part of the unfrozen step: its share, the part of it that a run saves, and the points of the step "
        "that this makes; beside them the same by matmul FLOPs.",
        ["part", "share of the step", "saved of it", "points", "share by FLOPs", "saved by FLOPs", "points by FLOPs"],
        rows,
    )


def saving_section(measured: Sequence[Mapping[str, StepCosts]], remarks: Sequence[str]) -> Section:
    """The integral over the schedule, with its targets."""
    rows = []
    for costs in measured:
        for name, of_model in costs.items():
            case = of_model.case
            by_flops = saving(case.schedule, of_model.flops)
            target = f"≥ {by_flops - 0.006:.1%}" if name == "here" else "–"
            compute, whole = of_model.saving(PARTS[:2]), of_model.saving()
            run = f"{case.name}, {of_model.precision}, {name}"
            rows.append([run, f"{by_flops:.1%}", target, f"{compute:.1%}", f"{whole:.1%}"])
    return Section(
        "Saved over a whole run",
        "FreezeOut cubic 0.8 over 100 epochs of ImageNet in batches of 2048, warm-up 10 % (ViT-L: 5 %): the relative "
        "times of the tables above, between the measured counts linear in the model's own FLOPs, added up over the "
        "schedule. The target leaves 0.6 points of the FLOPs to all that "
        "is no matrix product.",
        ["run", "FLOPs", "target", "forward + backward", "step"],
        rows,
        remarks,
    )
