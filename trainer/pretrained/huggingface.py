"""A folder as the Hugging Face Hub keeps models: timm reads it, from the Hub or from the disk.

::

    FOLDER/config.json          which model of timm, and how images are prepared
    FOLDER/model.safetensors    the encoder, as `export.write_timm` writes it
    FOLDER/README.md            the model card
"""

import json
from pathlib import Path

from trainer.errors import BadInput
from trainer.files import replace_folder, write_text
from trainer.pretrained.export import cannot_write, write_encoder
from trainer.pretrained.load import FOLDER_CONFIG, FOLDER_WEIGHTS
from trainer.pretrained.model_card import CARD, model_card
from trainer.pretrained.timm_model import timm_config
from trainer.pretrained.weights import Pretrained


def write_huggingface(pretrained: Pretrained, output: Path) -> int:
    """Make the folder `output`, whole or not at all, in place of an earlier one; returns the bytes of all its files.

    Raises `BadInput` if it cannot be written, if something else than such a folder is there, or if timm has no such
    model."""
    require_folder_of_ours(output)
    config = timm_config(pretrained.config, pretrained.source)
    try:
        with replace_folder(output) as folder:
            write_text(folder / FOLDER_CONFIG, json.dumps(config, indent=2) + "\n")
            write_text(folder / CARD, model_card(pretrained, output.name))
            write_encoder(pretrained, folder / FOLDER_WEIGHTS)
            return sum(file.stat().st_size for file in folder.iterdir())
    except OSError as error:
        raise cannot_write(output, error) from None


def require_folder_of_ours(output: Path) -> None:
    """Raises `BadInput` if replacing `output` would delete anything that `write_huggingface` has not written."""
    if not output.exists():
        return
    found = {path.name for path in output.iterdir()} if output.is_dir() and not output.is_symlink() else None
    if found is None or not found <= {FOLDER_CONFIG, FOLDER_WEIGHTS, CARD}:
        raise BadInput(f"--output {output}: holds other things than such a folder, which would be lost; choose another")
