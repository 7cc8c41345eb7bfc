"""A run of the tests that is stopped on the way, and what the newest checkpoint of one holds."""

from pathlib import Path

import torch

from trainer.checkpoint.find import newest_whole
from trainer.checkpoint.manifest import list_checkpoints, verify
from trainer.checkpoint.reader import Checkpoint
from trainer.loop import Training

KINDS = ("master", "exp_avg", "exp_avg_sq", "average")


def ask_to_stop_after(training: Training, step: int) -> None:
    """Have the run end as after a signal, when so many steps are done or one more. Call it on every rank."""
    go_on = training._after_step

    def ask() -> None:
        go_on()
        if training.step == step - 1:  # the ranks agree one step later
            training._ask_to_stop("the test")

    training._after_step = ask  # type: ignore[method-assign]


def state(output: Path) -> dict[str, torch.Tensor]:
    """Every fp32 weight, moment and average in the newest checkpoint."""
    checkpoint = Checkpoint(newest_whole(list_checkpoints(output / "checkpoints"), print, verify))
    return {
        f"{kind} {name}": checkpoint.read(kind, name, 0, checkpoint.numel(name))
        for name in checkpoint.manifest.shapes
        for kind in KINDS
        if (kind, name) in checkpoint._parts
    }
