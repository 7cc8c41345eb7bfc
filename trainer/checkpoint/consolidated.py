"""One fp32 file of a whole checkpoint, for people without this project: safetensors alone reads it."""

import json
from pathlib import Path

from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.state_file import MASTER, write_fp32
from trainer.errors import BadInput
from trainer.files import replace_file


def write_consolidated(checkpoint: Checkpoint, output: Path) -> int:
    """Write every parameter, frozen ones too, in fp32 under its name in `trainer.model.localmim.LocalMIM`.

    The file's metadata are strings: ``step``, ``frozen_units``, ``recipe`` (JSON) and ``format`` = ``pt``. `output`
    appears whole or not at all. Parameters pass through memory one at a time, so the peak is about twice the largest
    one (19 MB for ViT-B), besides the mapped files, whose pages the system takes back as it likes.
    Returns the size in bytes. Raises `BadInput` if `output` cannot be written."""
    manifest = checkpoint.manifest
    metadata = {
        "format": "pt",
        "step": str(manifest.step),
        "frozen_units": str(manifest.frozen_units),
        "recipe": json.dumps(manifest.recipe),
    }
    weights = (
        checkpoint.read(MASTER, name, 0, checkpoint.numel(name)).view(shape) for name, shape in manifest.shapes.items()
    )
    try:
        with replace_file(output) as stream:
            size, _ = write_fp32(stream, manifest.shapes, weights, metadata)
    except OSError as error:
        raise BadInput(
            f"--output {output}: cannot be written ({error.strerror}); choose another, or mend that"
        ) from None
    return size
