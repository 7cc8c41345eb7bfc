"""From a folder of class folders to the shards that the study reads."""

import shutil
import subprocess
import sys
from pathlib import Path

_TRAINING_SHARDS, _VALIDATION_SHARDS = 8, 2


def is_made(output: Path) -> bool:
    return (output / "train.json").is_file() and (output / "validation.json").is_file()


def convert(images: Path, output: Path) -> Path:
    """Shards of images/train and images/validation in the folder `output`; `images` is removed."""
    subprocess.run(
        [sys.executable, "-m", "data_tools", "imagefolder", "--input", str(images), "--output", str(output),
         "--shards", str(_TRAINING_SHARDS), "--val-shards", str(_VALIDATION_SHARDS), "--workers", "1"],
        check=True,
    )  # fmt: skip
    shutil.rmtree(images)
    return output
