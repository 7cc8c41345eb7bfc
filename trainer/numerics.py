"""Steps whose loss or gradient was not finite: told as they come, and, when too many come in a row, the end of the run.

The engine cancels such an update on all ranks and counts it (`FreezingEngine.step`), and the data and the schedule go
on. One now and then costs nothing but its own batch. Many in a row do not pass by themselves, so the run ends and
leaves what is needed to see why::

    RUN/inspection/step_00000120/    the training state, as any checkpoint; `--resume auto` does not look here
    RUN/inspection/step_00000120.json
        step, max_bad_steps, loss_scale
        last_good_gradient_norm      null where DeepSpeed computes none (stage 0 under fp32)
        bad_steps                    those in the row, oldest first: step, and for each micro-batch of each rank
                                     rank, loss_stages (by live stage; "nan", "inf", "-inf" as words), sample keys
"""

import json
import math
from collections import deque
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainer.engine.engine import FreezingEngine
from trainer.files import write_text

MicroBatchRecord = tuple[list[str], torch.Tensor]
"""Sample keys, and the stage losses on the device."""


class BadSteps:
    """This rank's record of the bad steps in a row. Reads nothing from the device until there is something to tell."""

    def __init__(self, limit: int):
        self.limit = limit
        self._micro_batches: list[MicroBatchRecord] = []
        self._row: deque[tuple[int, list[MicroBatchRecord]]] = deque(maxlen=limit)
        self._good_norm: torch.Tensor | float | None = None

    def add(self, keys: list[str], stage_losses: torch.Tensor) -> None:
        """Take note of a micro-batch of the step under way. stage_losses: fp32 [live stages]."""
        self._micro_batches.append((keys, stage_losses.detach()))

    def step_done(self, step: int, engine: FreezingEngine) -> str | None:
        """Call after the update of `step` (1 = the first). What to tell when it was a bad one, None otherwise."""
        micro_batches, self._micro_batches = self._micro_batches, []
        if not engine.bad_steps_in_a_row:
            self._row.clear()
            self._good_norm = engine.gradient_norm
            return None
        self._row.append((step, micro_batches))
        return (
            f"step {step}: loss or gradient not finite, update skipped on all ranks "
            f"({engine.bad_steps_in_a_row} in a row, the run ends at {self.limit}; {engine.bad_steps} in all)"
        )

    def too_many(self, engine: FreezingEngine) -> bool:
        """Whether the run has to end: the same on every rank."""
        return engine.bad_steps_in_a_row >= self.limit

    def report(self, step: int, engine: FreezingEngine) -> dict[str, Any]:
        """The content of the JSON file, described above. Collective."""
        mine = [
            {"step": at, "rank": dist.get_rank(), "loss_stages": _words(losses.tolist()), "keys": keys}
            for at, micro_batches in self._row
            for keys, losses in micro_batches
        ]
        by_rank: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(by_rank, mine)
        by_step: dict[int, list[dict[str, Any]]] = {}
        for micro_batch in (micro_batch for rank in by_rank for micro_batch in rank):
            by_step.setdefault(micro_batch.pop("step"), []).append(micro_batch)
        return {
            "step": step,
            "max_bad_steps": self.limit,
            "loss_scale": engine.loss_scale,
            "last_good_gradient_norm": None if self._good_norm is None else _words([float(self._good_norm)])[0],
            "bad_steps": [{"step": at, "micro_batches": by_step[at]} for at in sorted(by_step)],
        }


def write_report(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(report, indent=1) + "\n")


def farewell(report: dict[str, Any], path: Path) -> str:
    """The last words of a run that ends: where it went wrong, and what to do. One paragraph."""
    last = report["bad_steps"][-1]["micro_batches"]
    guilty = [m for m in last if not all(isinstance(value, float) for value in m["loss_stages"])]
    ranks = sorted({m["rank"] for m in guilty})
    where = f"losses on rank {', '.join(map(str, ranks))}" if guilty else "the losses are finite, a gradient is not"
    shown = (guilty or last)[0]
    keys = ", ".join(shown["keys"][:4]) + (", …" if len(shown["keys"]) > 4 else "")
    return (
        f"{report['max_bad_steps']} steps in a row, the last of them step {report['step']}, had a loss or a gradient "
        f"that is not finite ({where}; rank {shown['rank']}: by stage {shown['loss_stages']} for samples {keys}). "
        f"{path} has all samples and losses, {path.with_suffix('')} the state. --resume auto goes back to the last "
        "checkpoint; if it happens again from there, lower the learning rate or set optimizer.clip_grad, or look at "
        "those samples or at that rank's device"
    )


def _words(values: list[float]) -> list[float | str]:
    """JSON has no nan and no infinity."""
    return [value if math.isfinite(value) else str(value) for value in values]
