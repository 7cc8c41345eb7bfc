"""`train.profile`: what chosen steps of a run do, for people to look at. docs/profiling.md shows how.

Each rank writes, for each unbroken run of chosen steps::

    RUN/profile/rank_0/steps_00000100-00000103.trace.json.gz   for ui.perfetto.dev or chrome://tracing
    RUN/profile/rank_0/steps_00000100-00000103.memory.pickle   on CUDA only, for pytorch.org/memory_viz

The trace holds the operators of the host, the kernels of the accelerator and the phases of the training loop; its
counter track `allocated bytes` is the memory over time, on a CPU too. Recording changes no bit of the training, but it
costs time: the steps recorded are slower, and writing the files is left out of the step times.
"""

import contextlib
import gzip
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

log = logging.getLogger(__name__)

MEMORY_EVENTS = 1_000_000
"""Allocations that the memory snapshot goes back: more than a few steps make."""


def step_ranges(steps: Sequence[int]) -> list[range]:
    """[100, 101, 102, 500] → 100 to 102, and 500: unbroken runs of steps, each of which is one recording."""
    ranges: list[range] = []
    for step in sorted(set(steps)):
        if ranges and step == ranges[-1].stop:
            ranges[-1] = range(ranges[-1].start, step + 1)
        else:
            ranges.append(range(step, step + 1))
    return ranges


class StepProfiler:
    """Records the chosen steps of this rank. Call `before` and `after` around every step, `close` at the end."""

    def __init__(
        self,
        steps: Sequence[int],
        directory: Path,
        device: torch.device,
        aside: Callable[[], AbstractContextManager],
        say: Callable[[str], None],
        *,
        first_step: int,
    ):
        """`steps`: numbers from 1, of which those from `first_step` on, the first that the run takes, are recorded.
        `aside`: a context for work that does not count as training."""
        self._ranges = step_ranges([step for step in steps if step >= first_step])
        if steps and not self._ranges:
            say(f"profile: nothing to record, train.profile names no step from {first_step} on, where this run begins")
        self._directory, self._device, self._aside, self._say = directory, device, aside, say
        self._steps = range(0)  # being recorded, or about to be
        self._last_step = 0  # that was taken
        self._profiler: profile | None = None

    def before(self, step: int) -> None:
        """A recording starts one step early, where there is one: the profiler's own first step is slow, and thrown
        away."""
        for steps in self._ranges:
            if self._profiler is None and step in (steps.start - 1, steps.start):
                with self._aside():
                    self._start(steps, warmup=steps.start - step)

    def after(self, step: int) -> None:
        self._last_step = step
        if step == self._steps.stop - 1:
            self.close()
        elif self._profiler:
            self._profiler.step()

    def close(self) -> None:
        """Write the recording that is under way, if any. A disk that is full costs the recording, not the run, and no
        part of a recording is left on it."""
        if self._profiler is None:
            return
        with self._aside():
            self._profiler.stop()
            if self._last_step in self._steps:
                self._write(self._profiler, f"steps_{self._steps.start:08d}-{self._last_step:08d}")
            if self._device.type == "cuda":
                torch.cuda.memory._record_memory_history(enabled=None)
            self._profiler = None

    def _write(self, recorded: profile, name: str) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_trace(recorded, self._directory / f"{name}.trace.json.gz")
            if self._device.type == "cuda":
                torch.cuda.memory._dump_snapshot(str(self._directory / f"{name}.memory.pickle"))
            self._say(f"profile: {self._directory / name}.*; docs/profiling.md shows how to read it")
        except OSError as error:
            with contextlib.suppress(OSError):
                for part in self._directory.glob(f"{name}.*"):
                    part.unlink()
            why = error.strerror or error
            log.warning(
                "profile: %s.* was not written (%s): free space, or unset train.profile", self._directory / name, why
            )

    def _start(self, steps: range, warmup: int) -> None:
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
        self._steps = steps
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Profiler won't be using warmup")  # the run's first step has none
            # one step more than there will be: `stop` ends the recording, also one that is cut short
            phases = schedule(wait=0, warmup=warmup, active=len(steps) + 1, repeat=1)
        self._profiler = profile(activities=activities, profile_memory=True, schedule=phases)
        self._profiler.start()


def write_trace(recorded: profile, path: Path) -> None:
    """The recording as Chrome's trace JSON, gzipped, with a counter track of the memory. Raises OSError."""
    plain = path.with_suffix("")
    recorded.export_chrome_trace(str(plain))
    try:
        trace = json.loads(plain.read_bytes())
    except (FileNotFoundError, ValueError) as error:  # torch raises nothing, and may leave half of a trace
        raise OSError(f"torch could not write {plain.name}") from error
    plain.unlink()
    trace["traceEvents"] += [_counter(event) for event in trace["traceEvents"] if event.get("name") == "[memory]"]
    with gzip.open(path, "wt") as file:
        json.dump(trace, file)


def _counter(event: dict[str, Any]) -> dict[str, Any]:
    """torch records each allocation as a mark with the total after it; viewers draw a curve of counter events."""
    device = "host" if event["args"]["Device Type"] == 0 else f"device {event['args']['Device Id']}"
    return {
        "ph": "C",
        "name": f"allocated bytes, {device}",
        "pid": event["pid"],
        "ts": event["ts"],
        "args": {"bytes": event["args"]["Total Allocated"]},
    }
