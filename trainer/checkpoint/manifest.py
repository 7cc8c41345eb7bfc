"""What a checkpoint is: its manifest, its place on disk, and whether it is whole."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.errors import BadInput
from trainer.files import write_text

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LATEST = "latest"
_DIRECTORY = re.compile(r"step_(\d{8,})")


class DamagedCheckpoint(RuntimeError):
    """A checkpoint directory that is not whole; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Manifest:
    """Everything about a training state that is not a tensor."""

    step: int  # optimizer steps done; also the position in the data, which is a pure function of it
    frozen_units: int
    world_size: int  # ranks that wrote it; any number may read it
    zero_stage: int
    precision: str
    recipe: dict[str, Any]
    index_hash: str  # of the shards that it was trained on
    engine: dict[str, Any]  # step counts and loss scale (FreezingEngine.resume_state)
    shapes: dict[str, list[int]]  # parameter name → shape, all parameters, frozen ones too
    files: dict[str, dict[str, Any]]  # file name → {bytes, sha256}
    format_version: int = FORMAT_VERSION


def directory_name(step: int) -> str:
    return f"step_{step:08d}"


def step_of(directory: Path) -> int:
    return int(directory.name.removeprefix("step_"))


def list_checkpoints(root: Path) -> list[Path]:
    """The checkpoint directories under `root`, newest first, whole or not."""
    found = [path for path in root.glob("step_*") if _DIRECTORY.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    write_text(directory / MANIFEST, json.dumps(asdict(manifest), indent=1))


def read_manifest(directory: Path) -> Manifest:
    """Raises `DamagedCheckpoint` when it is missing or unreadable, `BadInput` when it is of another format version."""
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_text())
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise BadInput(f"{path}: format version {version}, this program reads {FORMAT_VERSION}: use the newer one")
        return Manifest(**content)
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{path}: {type(error).__name__}: {error}") from None


def verify(directory: Path) -> Manifest:
    """Check that every file named by the manifest is there with the right size and sha256.

    Reads the whole checkpoint once. Raises `DamagedCheckpoint`, and `BadInput` as `read_manifest` does."""
    manifest = read_manifest(directory)
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise DamagedCheckpoint(f"{path}: missing")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise DamagedCheckpoint(f"{path}: {size} bytes, the manifest says {expected['bytes']}")
        if sha256(path) != expected["sha256"]:
            raise DamagedCheckpoint(f"{path}: sha256 differs from the manifest's")
    return manifest


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
