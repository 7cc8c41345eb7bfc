"""`load_pretrained`: pre-trained weights from whatever a path holds."""

from collections.abc import Callable
from pathlib import Path

from trainer.pretrained.checkpoint import load_checkpoint
from trainer.pretrained.weights import Pretrained


def load_pretrained(path: Path, *, say: Callable[[str], None] = print) -> Pretrained:
    """Read pre-trained weights. `path`: a run directory, whose newest whole checkpoint is meant, or a step_… directory.

    `say` is told of damaged checkpoints that are passed over. Raises `BadInput` for anything else."""
    return load_checkpoint(path, say)
