"""`python -m benchmarks.rebatch [--quick] [--output docs/benchmarks-rebatch.md]`

What a larger micro-batch saves at the same global batch, and what `freezing.rebatch` makes of that at the freezes: a
model whose micro-batches are over before their overhead is, and ViT-S, on one and two real ranks. Prints markdown
tables; --quick takes a tiny model alone. Takes about ten minutes on two cores that have nothing else to do."""

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from benchmarks.freezing_cases import EPOCHS, FREEZING, STEPS_PER_EPOCH, interpolate
from benchmarks.pages import command_parser, run_command
from benchmarks.rebatch_ranks import Case, step_seconds
from benchmarks.rounds import Costs, ratio_text
from benchmarks.tables import Section
from tests.distributed import RankPool
from trainer.byte_sizes import show_bytes
from trainer.freezing.rebatch import micro_batch_by_frozen_units
from trainer.freezing.schedule import FreezeSchedule
from trainer.model.config import ModelConfig
from trainer.model.flops import step_flops
from trainer.planning.memory import step_memory
from trainer.planning.parameter_use import planned_use
from trainer.planning.traffic import step_traffic

SMALL = Case("ViT-S", ModelConfig(size="small"), share=8)
BRIEF = Case("ViT-Ti of 16 patches", ModelConfig(size="tiny", image_size=64), share=16)
QUICK = Case(
    "tiny",
    ModelConfig(
        size="tiny", image_size=32, embed_dim=24, depth=4, num_heads=2, stages=[0, 1, 2, 3], decoder_dim=16,
        decoder_heads=2,
    ),
    share=4,
)  # fmt: skip
TIMEOUT = 900


@dataclass(frozen=True)
class Effort:
    """What is measured. `layouts`: ranks and ZeRO stage."""

    cases: tuple[Case, ...]
    layouts: tuple[tuple[int, int], ...]
    rounds: int


FULL = Effort((BRIEF, SMALL), ((1, 1), (2, 1), (2, 2), (2, 3)), rounds=2)
BRIEFEST = Effort((QUICK,), ((2, 2),), rounds=1)


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("rebatch", __doc__, quick="a tiny model, one round: shows that it works")
    title = "A larger micro-batch for the memory that freezing frees"
    return run_command(parser, argv, title, lambda arguments: sections(BRIEFEST if arguments.quick else FULL))


def sections(effort: Effort) -> Iterator[Section]:
    """Each as soon as it is measured."""
    pools = {world_size: RankPool(world_size) for world_size in (1, 2)}
    try:
        for case in effort.cases:
            yield overhead_section(case, pools, effort)
        for case in effort.cases:
            yield freeze_section(case, pools[2], effort.rounds)
    finally:
        for pool in pools.values():
            pool.stop()


def overhead_section(case: Case, pools: dict[int, RankPool], effort: Effort) -> Section:
    """What cutting the same images into more micro-batches costs, by ranks and ZeRO stage."""
    rows = []
    for world_size, stage in effort.layouts:
        by_rank = pools[world_size].run(step_seconds, case, stage, 0, case.sizes, effort.rounds, timeout=TIMEOUT)
        print(f"# {case.name}: {world_size} x ZeRO-{stage}", flush=True)
        sent = [sent_bytes(case, stage, world_size, size) for size in (1, case.share)]
        rows.append(
            [
                f"{world_size} x ZeRO-{stage}",
                *overhead_cells(case, slowest(by_rank)),
                " → ".join(map(show_bytes, sent)) if world_size > 1 else "–",
            ]
        )
    return Section(
        f"The price of a micro-batch: {case.name}",
        f"A step of {case.share} images per rank, fp32, one thread per rank, random images: its time in micro-batches "
        f"of 1, 2, … over its time in a single one of {case.share}, medians of {effort.rounds} rounds in which the "
        "sizes take turns. *ms*: what each micro-batch beyond the first adds, from the first column. *Sent*: bytes "
        "that a rank sends per step, as predicted, in micro-batches of 1 and in a single one.",
        ["ranks x stage", *(f"of {size}" for size in case.sizes), "ms", "sent"],
        rows,
    )


def overhead_cells(case: Case, costs: Mapping[str, Costs]) -> list[str]:
    """How many times the time of one micro-batch each size takes, and ms that each further micro-batch adds."""
    whole, pieces = costs[str(case.share)], costs["1"]
    extra = float(np.median(pieces.seconds - whole.seconds)) / (case.share - 1)
    return [*(f"{whole.times_faster_than(costs[str(size)])[0]:.2f}" for size in case.sizes), f"{1000 * extra:.0f}"]


def freeze_section(case: Case, ranks: RankPool, rounds: int) -> Section:
    """A run with `freezing.rebatch`, from micro-batch 1 and with the budget left empty."""
    stage, world_size = 2, 2
    ds = case.resolved(stage, world_size)
    chosen = micro_batch_by_frozen_units(case.model, ds, world_size, budget=None)
    seconds: dict[int, dict[int, float]] = defaultdict(dict)
    rows = []
    for count in measured_counts(chosen):
        sizes = sorted({1, chosen[max(0, count - 1)], chosen[count]})
        costs = slowest(ranks.run(step_seconds, case, stage, count, sizes, rounds, timeout=TIMEOUT))
        print(f"# {case.name}: {count} units frozen", flush=True)
        for size in sizes:
            seconds[size][count] = median(costs[str(size)].seconds)
        needed = [step_memory(case.model, ds, world_size, count, size).total for size in (1, chosen[count])]
        rows.append(
            [
                str(count),
                f"{chosen[count]} x {case.share // chosen[count]}",
                " → ".join(map(show_bytes, needed)),
                ratio_text(costs[str(chosen[count])], costs["1"]),
            ]
        )
    return Section(
        f"At the freezes of a run: {case.name}",
        f"Two ranks, ZeRO-2, {case.share} images per rank and step, configured as micro-batch 1 x {case.share}; cubic "
        "0.8. A row for each number of frozen units at which `freezing.rebatch` with an empty budget takes a larger "
        "micro-batch, and for two later ones. *Memory*: what the memory model says of the configured and of the larger "
        "one; the budget is the first row's. *Faster*: steps per second against micro-batch 1, median and quartiles of "
        f"{rounds} rounds; of two rounds the mean and both values.",
        ["frozen units", "micro-batch", "memory", "faster"],
        rows,
        [
            f"Over the whole run the steps are {times_faster(case.model, chosen, seconds):.2f} × faster; between the "
            "measured numbers of frozen units linear in the FLOPs."
        ],
    )


def measured_counts(chosen: Sequence[int]) -> list[int]:
    """Frozen counts at which the micro-batch grows, one two thirds along, and the last. `chosen`: micro-batch by frozen
    count."""
    last = len(chosen) - 1
    return sorted({chosen.index(size) for size in chosen} | {last * 2 // 3, last})


def times_faster(model: ModelConfig, chosen: Sequence[int], seconds: Mapping[int, Mapping[int, float]]) -> float:
    """Time of a run's steps in micro-batch 1, over that in the chosen ones.

    `seconds`: of a step by micro-batch and frozen count, each micro-batch where it begins and where the next one
    does."""
    flops = [step_flops(model, count).total for count in range(len(chosen))]
    by_size = {size: interpolate(measured, flops) for size, measured in seconds.items()}
    with_it = np.array([by_size[size][count] for count, size in enumerate(chosen)])
    steps = steps_by_frozen_units(model)
    return float((steps * by_size[1]).sum() / (steps * with_it).sum())


def slowest(by_rank: Sequence[dict[str, Costs]]) -> dict[str, Costs]:
    """By size, the seconds of the rank that took longest in each round."""
    return {size: Costs(np.max([costs[size].seconds for costs in by_rank], axis=0)) for size in by_rank[0]}


def sent_bytes(case: Case, stage: int, world_size: int, micro_batch: int) -> int:
    ds = case.resolved(stage, world_size, micro_batch)
    return round(step_traffic(planned_use(case.model, 0), ds, world_size).sent_bytes)


def steps_by_frozen_units(model: ModelConfig) -> np.ndarray:
    """Steps that a run of 100 epochs spends at each frozen count, int64 [depth + 1]."""
    total = EPOCHS * STEPS_PER_EPOCH
    schedule = FreezeSchedule(FREEZING, model.num_blocks, total, total // 10, lr=1e-4, min_lr=0)
    ends = [step if step is not None else total for step in schedule.freeze_steps()]
    return np.diff([0, *ends])


if __name__ == "__main__":
    sys.exit(main())
