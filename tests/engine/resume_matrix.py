"""Every way to continue a run that is promised: where it was saved, on what layout, and how exactly it goes on.

Run with: python -m tests.engine.resume_matrix [PART OF A ROW'S NAME …]      prints the matrix as a Markdown table
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.distributed import RankPool
from tests.engine.cases import Setting
from tests.engine.resumption import Outcome, resume, train_and_save
from tests.engine.trajectory import build_cpu_adam

PLACES = {
    1: "before any freeze",
    2: "at a freeze",
    3: "between freezes",
    5: "at the last freeze",
    6: "after all freezes",
}
"""step before which the state is saved → where that is among `cases.FREEZES`"""
TOLERANCES = {"fp32": 2e-6, "bf16": 8e-3, "fp16": 8e-3}
"""Largest difference of a weight after a change of layout: gradients are summed in another order, which under bf16 and
fp16 can flip the rounding of a weight. Under fp16 it also decides what overflows: a rank's share of the gradient is
larger on more ranks, so that an update may be skipped which was not before."""


@dataclass(frozen=True)
class Layout:
    ranks: int
    setting: Setting

    def __str__(self) -> str:
        return f"{self.ranks} x {self.setting}"


@dataclass(frozen=True)
class Row:
    """Saved on layout `then`, continued on `now`; the uninterrupted run stays on `then`."""

    then: Layout
    now: Layout
    save_before: int

    def __str__(self) -> str:
        changed = f"{self.then} to {self.now}" if self.then != self.now else str(self.then)
        return f"{changed}, saved {PLACES[self.save_before]}"

    @property
    def tolerance(self) -> float:
        """0 = bit for bit. With offload not promised: DeepSpeedCPUAdam keeps a running product for bias correction in
        C++, which a new process starts anew from the step count."""
        if self.then == self.now and not self.now.setting.offload:
            return 0.0
        return TOLERANCES[self.now.setting.precision]

    @property
    def loss_tolerance(self) -> float:
        """Of a loss, as the mean over the global batch. It moves with all weights at once: four times theirs."""
        return 4 * self.tolerance


def _same_layout() -> list[Row]:
    settings = [
        Setting(stage, precision, 0.5, 2)
        for stage in (0, 1, 2, 3)
        for precision in ("fp32", "bf16", "fp16")
        if not (stage == 0 and precision == "fp16")
    ]
    offloaded = [replace(setting, offload=True) for setting in settings if setting.stage]
    places = [(setting, place) for setting in settings for place in PLACES]
    places += [(setting, place) for setting in offloaded for place in (1, 3)]
    return [Row(Layout(2, setting), Layout(2, setting), place) for setting, place in places]


def _other_layouts() -> list[Row]:
    """A global batch of 16 samples throughout: 4 pieces divided over ranks, micro-batch and accumulation."""
    rows = []
    for stage in (0, 1, 2, 3):
        layouts = {ranks: Layout(ranks, Setting(stage, "fp32", accumulation=4 // ranks)) for ranks in (1, 2, 4)}
        rows += [Row(layouts[a], layouts[b], 3) for a in layouts for b in layouts if a != b]
        larger_micro_batch = Layout(2, Setting(stage, "fp32", accumulation=1, pieces=2))
        rows += [Row(layouts[2], larger_micro_batch, 3), Row(larger_micro_batch, layouts[2], 2)]
        others = [Layout(2, Setting(other, "fp32", accumulation=2)) for other in (0, 1, 2, 3) if other != stage]
        rows += [Row(layouts[2], other, 3) for other in others]
        rows.append(Row(Layout(2, Setting(stage, "bf16", accumulation=2)), Layout(4, Setting(stage, "bf16")), 3))
        if stage:  # after fp16's search for a scale, in which most updates are skipped
            rows.append(Row(Layout(2, Setting(stage, "fp16", accumulation=2)), Layout(4, Setting(stage, "fp16")), 6))
    return rows


MATRIX = [*_same_layout(), *_other_layouts()]


def shows(row: Row) -> list[tuple]:
    """What a row has that others have, too: its setting, its place, and each thing that changes."""
    then, now = row.then.setting, row.now.setting
    return [
        ("setting", then.stage, then.precision),
        ("offload", then.stage, then.offload),
        ("place", row.save_before, row.then == row.now),
        ("ranks", row.then.ranks, row.now.ranks),
        ("another stage", now.stage, then.stage != now.stage),
        ("pieces", then.pieces, now.pieces),
    ]


def difference(row: Row, pool: Callable[[int], RankPool], root: Path) -> tuple[float, float]:
    """Save, continue, and compare with the uninterrupted run: largest absolute difference of a loss after the save, as
    the mean over the global batch, and of a final weight."""
    if row.then.setting.offload:
        pool(row.then.ranks).run(build_cpu_adam, timeout=500)
    uninterrupted: list[Outcome] = pool(row.then.ranks).run(
        train_and_save, row.then.setting, row.save_before, str(root)
    )
    again: list[Outcome] = pool(row.now.ranks).run(resume, row.now.setting, str(root))
    losses = np.abs(_by_step(again, row.now) - _by_step(uninterrupted, row.then)).max()
    weights = max(
        float(np.abs(after.weights[name] - uninterrupted[0].weights[name]).max())
        for after in again
        for name in after.weights
    )
    return float(losses), weights


def _by_step(outcomes: list[Outcome], layout: Layout) -> np.ndarray:
    """Loss of each step, the mean over ranks and micro-batches: float64 [steps]."""
    losses: Any = np.array([outcome.losses for outcome in outcomes], dtype=np.float64)
    return losses.reshape(layout.ranks, -1, layout.setting.accumulation).mean(axis=(0, 2))


def main(wanted: list[str]) -> None:
    pools: dict[int, RankPool] = {}
    columns = ("saved on (ranks x setting)", "continued on", "saved", "loss differs by", "allowed", "weights differ by",
               "allowed")  # fmt: skip
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    try:
        for row in MATRIX:
            if wanted and not any(part in str(row) for part in wanted):
                continue
            with tempfile.TemporaryDirectory() as directory:
                found = difference(row, lambda n: pools.setdefault(n, RankPool(n)), Path(directory) / "checkpoints")
            now = "the same" if row.now == row.then else str(row.now)
            print(
                f"| {row.then} | {now} | {PLACES[row.save_before]} | {found[0]:.1e} | {row.loss_tolerance:.0e} "
                f"| {found[1]:.1e} | {row.tolerance:.0e} |",
                flush=True,
            )
    finally:
        for pool in pools.values():
            pool.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
