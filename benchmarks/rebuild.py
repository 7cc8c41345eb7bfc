"""`python -m benchmarks.rebuild [--model base|large] [--ranks 1 2] [--quick] [--output docs/benchmarks-rebuild.md]`

What a freeze costs: how long training stands still while the optimizer is rebuilt, what the step after it loses, and
how much memory it needs for a moment. Every freeze of a run, ZeRO 0 to 3, fp32 and bf16, real ranks on this machine.
Prints markdown tables; --quick takes a tiny model."""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.freezing_cases import EPOCHS, STEPS_PER_EPOCH, TINY, VIT_BASE, VIT_LARGE, Case
from benchmarks.pages import at_least_one, command_parser, run_command
from benchmarks.rebuild_costs import SMALL_BATCH, STEPS, WARM_UP, Costs, costs_of_freezes
from benchmarks.tables import Section
from tests.distributed import RankPool
from trainer.engine.ds_config import Precision

CASES = {"base": replace(VIT_BASE, micro_batch=8), "large": replace(VIT_LARGE, micro_batch=4)}
"""Smaller micro-batches than a training takes: their steps are shorter, so that the target asks for more."""
STAGES = (0, 1, 2, 3)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
TIMEOUT = 600
GPU_STEP_SECONDS = 0.3
"""A step of the published recipe on eight GPUs of today, estimated: 2048 images at 850 images/s and GPU."""
GPU_RUN_SECONDS = EPOCHS * STEPS_PER_EPOCH * GPU_STEP_SECONDS
MB = 1e6


@dataclass(frozen=True)
class Row:
    """One layout and what it cost each rank."""

    ranks: int
    zero_stage: int
    precision: str
    costs: Sequence[Costs]

    @property
    def name(self) -> str:
        return f"ZeRO-{self.zero_stage} {self.precision}, {self.ranks} rank{'s' if self.ranks > 1 else ''}"

    @property
    def seconds(self) -> list[float]:
        """Of each freeze, on the slowest rank."""
        return [max(by_rank) for by_rank in zip(*(costs.freezes for costs in self.costs), strict=True)]

    @property
    def next_step(self) -> float:
        """Seconds that a step loses by following a freeze: the median, and never less than nothing."""
        return max(0.0, statistics.median([seconds for costs in self.costs for seconds in costs.next_steps] or [0.0]))


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("rebuild", __doc__, quick="a tiny model: shows that it works, and nothing else")
    parser.add_argument("--model", choices=sorted(CASES), default="base")
    parser.add_argument("--ranks", type=at_least_one, nargs="+", default=[1, 2])
    parser.add_argument("--stages", type=int, nargs="+", default=STAGES, choices=STAGES, help="of ZeRO")
    return run_command(parser, argv, "Rebuilding the optimizer at a freeze", _sections)


def _sections(arguments: argparse.Namespace) -> Iterator[Section]:
    case, rows = TINY if arguments.quick else CASES[arguments.model], []
    for ranks in arguments.ranks:
        with RankPool(ranks) as pool:
            for precision in PRECISIONS:
                for stage in arguments.stages:
                    costs = pool.run(costs_of_freezes, case, stage, precision, timeout=TIMEOUT)
                    rows.append(Row(ranks, stage, precision, costs))
                    print(f"# {rows[-1].name}: {max(rows[-1].seconds):.2f} s a freeze at most", flush=True)
    yield time_section(case, rows)
    yield memory_section(case, rows)


def time_section(case: Case, rows: Sequence[Row]) -> Section:
    """A row for every layout. `rows` must hold the fp32 row of each."""
    return Section(
        f"Seconds of a freeze of {case.name}",
        f"{case.model.num_units - 1} freezes, one unit each, archive of the fp32 weights included; the slowest rank "
        f"counts. *Next step*: by how much the step after a freeze is slower than the one after it, micro-batch "
        f"{SMALL_BATCH}, median. *Step*: of micro-batch {case.micro_batch} a rank under fp32 before any freeze, in the "
        f"same layout; the median of {STEPS} after {WARM_UP} that do not count. *Steps*: the longest freeze and its "
        "next step, in such steps; a larger micro-batch makes it fewer. *Of a run on GPUs*: all freezes and their next "
        f"steps, with the seconds from here, of {EPOCHS * STEPS_PER_EPOCH:,} steps of {GPU_STEP_SECONDS} s, an "
        f"estimate for {EPOCHS} epochs of ImageNet in batches of 2048 on eight GPUs. Under bf16 no step is taken: this "
        "is for processors without bf16 instructions, and a freeze multiplies no matrices.",
        ["layout", "median, s", "longest, s", "next step, s", "step, s", "steps (≤ 2)", "of a run on GPUs (< 0.1 %)"],
        [_time_cells(row, _step_seconds(rows, row)) for row in rows],
    )


def _step_seconds(rows: Sequence[Row], row: Row) -> float:
    """Of the same layout under fp32, on the slowest rank."""
    layout = (row.ranks, row.zero_stage)
    fp32 = next(r for r in rows if (r.ranks, r.zero_stage) == layout and r.precision == "fp32")
    return max(costs.step for costs in fp32.costs)


def _time_cells(row: Row, step: float) -> list[str]:
    stood_still = sum(row.seconds) + len(row.seconds) * row.next_step
    return [
        row.name,
        f"{statistics.median(row.seconds):.3f}",
        f"{max(row.seconds):.3f}",
        f"{row.next_step:.3f}" if row.precision == "fp32" else "-",
        f"{step:.2f}",
        f"{(max(row.seconds) + row.next_step) / step:.2f}",
        f"{100 * stood_still / GPU_RUN_SECONDS:.2g} %",
    ]


def memory_section(case: Case, rows: Sequence[Row]) -> Section:
    """A row for every layout."""
    return Section(
        f"Memory that a freeze of {case.name} needs and gives back",
        "MB of tensor storages on the rank that needs most, followed operator by operator. *Rise*: the most that any "
        "freeze needed above what was allocated before it, the archived fp32 weights of the unit included. *Unit*: "
        "weights, masters and moments of the largest unit, which is what the rise is to stay below. *State*: masters "
        "and moments before the first freeze. *Given back*: of them, by all freezes together; *due*: by theory.",
        ["layout", "state", "unit", "rise (≤ unit)", "given back", "due"],
        [
            [
                row.name,
                *(
                    f"{max(values) / MB:.1f}"
                    for values in (
                        [costs.state for costs in row.costs],
                        [costs.unit_state for costs in row.costs],
                        [max(costs.rises) for costs in row.costs],
                        [sum(costs.given_back) for costs in row.costs],
                        [sum(costs.due) for costs in row.costs],
                    )
                ),
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
