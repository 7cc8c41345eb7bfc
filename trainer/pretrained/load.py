"""`load_pretrained`: pre-trained weights from whatever a path holds."""

import json
from collections.abc import Callable
from pathlib import Path

from trainer.errors import BadInput
from trainer.model.config import ModelConfig
from trainer.pretrained.checkpoint import load_checkpoint
from trainer.pretrained.files import read_weights
from trainer.pretrained.recognise import recognise
from trainer.pretrained.weights import Pretrained

FOLDER_CONFIG, FOLDER_WEIGHTS = "config.json", "model.safetensors"
"""The files of a Hugging Face folder that timm reads."""


def load_pretrained(path: Path, *, like: ModelConfig | None = None, say: Callable[[str], None] = print) -> Pretrained:
    """Read pre-trained weights: of a run directory (its newest whole checkpoint), a step_… directory, a Hugging Face
    folder of a timm ViT, a .safetensors file, or a .pth or .pt file with the names of LocalMIM, MAE or timm.

    `like`: the model that they are for, where one is known; other projects' files of unusual models do not say how many
    heads they have. `say` is told of damaged checkpoints that are passed over.
    Raises `BadInput` for what is none of these, not whole, of an unknown architecture, or a pickle that runs code."""
    try:
        if not path.is_dir():
            return _load_file(path, path, like)
        if (path / FOLDER_WEIGHTS).exists():
            pretrained = _load_file(path / FOLDER_WEIGHTS, path, like)
            _require_heads(path / FOLDER_CONFIG, pretrained.config)
            return pretrained
        return load_checkpoint(path, say)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); mend that, or give another checkpoint") from None


def _load_file(file: Path, given: Path, like: ModelConfig | None) -> Pretrained:
    weights, metadata = read_weights(file)
    return recognise(weights, metadata, _name(given, metadata), like)


def _name(path: Path, metadata: dict[str, str]) -> str:
    step = metadata.get("step", "")
    return f"{path}, step {step}" if step.isdecimal() else str(path)


def _require_heads(path: Path, config: ModelConfig) -> None:
    """A folder from elsewhere may say that its ViT is not the standard one of its shape. Raises `BadInput`."""
    try:
        heads = json.loads(path.read_text()).get("model_args", {}).get("num_heads", config.heads)
    except (OSError, ValueError, AttributeError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); mend it, or give the weights' file itself") from None
    if heads != config.heads:
        raise BadInput(f"{path}: model_args.num_heads is {heads}, a ViT of this shape has {config.heads}; not readable")
