"""The checkpoints of this program as pre-trained weights."""

import json
from collections.abc import Callable
from pathlib import Path

from trainer.checkpoint.find import checkpoints_at, newest_whole
from trainer.checkpoint.manifest import DamagedCheckpoint, Manifest, verify
from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.state_file import MASTER
from trainer.errors import BadInput
from trainer.pretrained.recognise import recognise
from trainer.pretrained.weights import Pretrained


def load_checkpoint(path: Path, say: Callable[[str], None]) -> Pretrained:
    """A step_… directory, or the newest whole one of a run directory; damaged ones are named through `say`.

    Reads it once to check it and once more for its fp32 weights. Raises `BadInput`."""
    try:
        directory = newest_whole(checkpoints_at(path, "pre-trained weights"), say, verify)
        checkpoint = Checkpoint(directory)
    except DamagedCheckpoint as error:
        raise BadInput(f"pre-trained weights: {error}; give another checkpoint") from None
    manifest = checkpoint.manifest
    weights = {
        name: checkpoint.read(MASTER, name, 0, checkpoint.numel(name)).view(shape)
        for name, shape in manifest.shapes.items()
    }
    about = _of_manifest(manifest) | _of_run(directory.parent.parent)
    return recognise(weights, about, f"{path}, step {manifest.step}")


def _of_manifest(manifest: Manifest) -> dict[str, str]:
    return {
        "step": str(manifest.step),
        "frozen_units": str(manifest.frozen_units),
        "precision": manifest.precision,
        "shards": manifest.index_hash,
        "recipe": json.dumps(manifest.recipe),
    }


def _of_run(run: Path) -> dict[str, str]:
    """The number of images, which the run itself knows; a checkpoint that was carried elsewhere does not."""
    try:
        return {"images": str(int(json.loads((run / "environment.json").read_text())["shards"]["samples"]))}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
