"""The checkpoints of this program as pre-trained weights."""

from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from trainer.checkpoint.find import checkpoints_at, newest_whole
from trainer.checkpoint.manifest import DamagedCheckpoint, step_of, verify
from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.state_file import MASTER
from trainer.errors import BadInput
from trainer.model.config import ModelConfig
from trainer.pretrained.weights import Pretrained, from_localmim


def load_checkpoint(path: Path, say: Callable[[str], None]) -> Pretrained:
    """A step_… directory, or the newest whole one of a run directory; damaged ones are named through `say`.

    Reads it once to check it and once more for its masters. Raises `BadInput`."""
    try:
        directory = newest_whole(checkpoints_at(path, "pre-trained weights:"), say, verify)
        checkpoint = Checkpoint(directory)
    except DamagedCheckpoint as error:
        raise BadInput(f"pre-trained weights: {error}; give another checkpoint") from None
    config = model_config(checkpoint.manifest.recipe, directory)
    weights = {
        name: checkpoint.read(MASTER, name, 0, checkpoint.numel(name)).view(shape)
        for name, shape in checkpoint.manifest.shapes.items()
    }
    return from_localmim(config, weights, f"{path}, step {step_of(directory)}")


def model_config(recipe: dict, source: Path) -> ModelConfig:
    """The model of a recipe that was written down with weights; its other sections may be of other times.

    Raises `BadInput`."""
    try:
        return ModelConfig.model_validate(recipe.get("model", {}))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("model", *first["loc"])))
        raise BadInput(f"{source}: its recipe's {key}: {first['msg']}; use the program that wrote it") from None
