"""Files of weights: safetensors, and pickles of torch as far as they are data alone."""

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.errors import BadInput

_WRAPPINGS = ("model", "state_dict")
"""Keys under which MAE, LocalMIM and timm keep the weights among other things."""


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights in a file, on the host, and a safetensors file's metadata. Raises `BadInput`, naming the file."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give a checkpoint, an export or a run directory")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_pickle(path), {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path}: not a whole safetensors file ({error}); give another checkpoint") from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # MAE keeps its command line beside the weights
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a stranger's file goes wrong in any way it likes
        raise BadInput(f"{path}: {_why(str(error))}") from None
    for key in _WRAPPINGS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise BadInput(f"{path}: holds no weights by name ({type(content).__name__}); give another checkpoint")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise BadInput(f"{path}: holds {name!r}, which is no weight, among its weights; give another checkpoint")
    return dict(content)


def _why(error: str) -> str:
    needs_code = re.search(r"GLOBAL (\S+)", error)
    if needs_code:
        return (
            f"is a pickle that runs code ({needs_code[1]}), which may do anything; save its state_dict alone, as "
            "safetensors best, where you trust it"
        )
    first_line = (error.splitlines() or ["empty"])[0]
    return f"not a checkpoint, or cut short ({first_line[:100]}); give another"
