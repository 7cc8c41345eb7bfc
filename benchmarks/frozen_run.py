"""One short run from first step to last through every freeze, beside the same run that freezes nothing.

Both are real: `launch/pretrain.py`, its loader, its logs. They take turns of a few steps, the other one stopped by
SIGSTOP, so that both meet the same weather."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.freezing_cases import FREEZING, Case
from benchmarks.tables import Section
from trainer.freezing.schedule import FreezeSchedule
from trainer.tracking.metrics import read_metrics

REPOSITORY = Path(__file__).parents[1]
SLICE = 4
"""Steps in a turn."""
PATIENCE = 300
"""Seconds that a turn may take, the start of the process included."""


@dataclass(frozen=True)
class RunSeconds:
    """Wall time of a run after its first step, and how much of that its freezes took."""

    total: float
    freezes: float


def run_section(case: Case, shards: Path, steps: int, work: Path, costs: Sequence[float] | None) -> Section:
    """`costs`: by frozen count, what a step was measured to cost (`StepCosts.by_count`), if it was."""
    schedule = FreezeSchedule(FREEZING, case.model.num_blocks, steps, round(case.warmup * steps), lr=1e-4, min_lr=0)
    plain, freezing = _measure(case, shards, steps, work)
    return Section(
        f"A whole run of {case.name}, in {steps} steps",
        f"`launch/pretrain.py` with freezing.how=cubic beside freezing.how=none, in turns of {SLICE} steps: fp32, "
        f"micro-batch {case.micro_batch}, ZeRO-2, one rank on one thread, one data worker, a log line every step. Wall "
        f"time of the steps 2 to {steps}, logs and waiting included: {plain.total:.0f} s and {freezing.total:.0f} s.",
        ["saved", "of the run"],
        saved_rows(schedule, case.flops, costs, plain, freezing),
        [
            f"All freezes together took {freezing.freezes:.1f} s, as long as "
            f"{freezing.freezes / plain.total * (steps - 1):.1f} unfrozen steps; a run of 100 epochs has as many."
        ],
    )


def saved_rows(
    schedule: FreezeSchedule,
    flops: Sequence[float],
    costs: Sequence[float] | None,
    plain: RunSeconds,
    freezing: RunSeconds,
) -> list[list[str]]:
    """What was to be saved, and what was. `flops` and `costs`: of a step, by frozen count."""
    return [
        ["by FLOPs", f"{_saved_after_first_step(schedule, flops):.1%}"],
        *([["by the step costs above", f"{_saved_after_first_step(schedule, costs):.1%}"]] if costs else []),
        ["this run, without the freezes themselves", f"{1 - (freezing.total - freezing.freezes) / plain.total:.1%}"],
        ["this run, all of it", f"{1 - freezing.total / plain.total:.1%}"],
    ]


def _saved_after_first_step(schedule: FreezeSchedule, costs: Sequence[float]) -> float:
    spent = sum(costs[schedule.frozen_units(step)] for step in range(1, schedule.total_steps))
    return 1 - spent / ((schedule.total_steps - 1) * costs[0])


def _measure(case: Case, shards: Path, steps: int, work: Path) -> tuple[RunSeconds, RunSeconds]:
    """Without freezing, and with."""
    with (
        PausableRun(case, "none", shards, work / "none") as plain,
        PausableRun(case, "cubic", shards, work / "cubic") as freezing,
    ):
        for run in (plain, freezing):
            run.go_on_until(1)
        totals = [0.0, 0.0]
        for until in [*range(1 + SLICE, steps, SLICE), steps]:
            for number, run in enumerate((plain, freezing)):
                totals[number] += run.go_on_until(until)
            print(f"# whole run: step {until} of {steps}, {totals[0]:.1f} s and {totals[1]:.1f} s", flush=True)
        return RunSeconds(totals[0], plain.freeze_seconds()), RunSeconds(totals[1], freezing.freeze_seconds())


class PausableRun:
    """A training process with its data workers, which stand still but for `go_on_until`. Killed when the context
    ends."""

    def __init__(self, case: Case, how: str, shards: Path, directory: Path):
        self._directory, self._output = directory, directory.with_suffix(".log")
        model = [f"model.{key}={json.dumps(value)}" for key, value in case.model.model_dump(exclude_unset=True).items()]
        overrides = [
            *model, f"freezing.how={how}", f"freezing.t0={FREEZING.t0}", f"optimizer.warmup_epochs={case.warmup}",
            "train.epochs=1", f"train.global_batch={case.micro_batch}", "data.workers=1", "checkpoint.every_epochs=0",
            "tracking.log_every=1", "tracking.tensorboard=false", "tracking.pictures=never",
        ]  # fmt: skip
        with self._output.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "launch/pretrain.py", "--ds_config", "ds_configs/zero2_fp32.json", "--recipe",
                 "vit_base", "--data", str(shards), "--output", str(directory), *overrides],
                env=_environment(), cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._signal(signal.SIGSTOP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()

    def go_on_until(self, step: int) -> float:
        """Let it run until this step is in its log; seconds that this took.

        Raises RuntimeError, with the end of what it printed, if it ends before or stands still."""
        start = time.perf_counter()
        self._signal(signal.SIGCONT)
        while not any(event["event"] == "step" and event["step"] >= step for event in read_metrics(self._directory)):
            if self._process.poll() is not None or time.perf_counter() - start > PATIENCE:
                raise RuntimeError(f"step {step} was not reached:\n{self._output.read_text(errors='replace')[-3000:]}")
            time.sleep(0.005)
        seconds = time.perf_counter() - start
        self._signal(signal.SIGSTOP)
        return seconds

    def freeze_seconds(self) -> float:
        """Seconds that its freezes took so far."""
        return sum(event["seconds"] for event in read_metrics(self._directory) if event["event"] == "freeze")

    def _signal(self, number: signal.Signals) -> None:
        """To the process and its workers, which are one process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _environment() -> dict[str, str]:
    """A run of one rank on one thread, whatever this process was started as."""
    made_by_launchers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in made_by_launchers}
    return kept | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
