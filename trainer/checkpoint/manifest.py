"""What a checkpoint is: its manifest, its place on disk, and whether it is whole."""

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trainer.checkpoint.state_file import sha256
from trainer.errors import BadInput
from trainer.files import write_text

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
LATEST = "latest"
OWN_CHECKSUM = "manifest_sha256"
_DIRECTORY = re.compile(r"step_(\d{8,})")
_RANK_FILE = re.compile(r"rank_\d{5,}\.safetensors")


class DamagedCheckpoint(RuntimeError):
    """A checkpoint directory that is not whole; the message names the file and what is wrong with it."""

    kind = "a damaged checkpoint"


class ScatteredCheckpoint(DamagedCheckpoint):
    """A checkpoint of machines with disks of their own, of which some files are not here; the message names them."""

    kind = "a checkpoint that is not all here"


@dataclass(frozen=True)
class FileRecord:
    bytes: int
    sha256: str


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
    files: dict[str, FileRecord]  # rank_00000.safetensors, … → size and checksum
    freezing: dict[str, Any] = field(default_factory=dict)  # what a policy that measures has been told
    reference: dict[str, list[int]] = field(default_factory=dict)  # shapes of the tensors that it compares with
    hosts: dict[str, str] = field(default_factory=dict)  # file → machine with a disk of its own that wrote it
    format_version: int = FORMAT_VERSION


_SCHEMA = TypeAdapter(Manifest)


def directory_name(step: int) -> str:
    return f"step_{step:08d}"


def step_of(directory: Path) -> int:
    return int(directory.name.removeprefix("step_"))


def list_checkpoints(root: Path) -> list[Path]:
    """The checkpoint directories under `root`, newest first, whole or not; none where there is no such folder.

    Raises OSError if it cannot be read (`Path.glob` would find nothing, and the run would start anew)."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if _DIRECTORY.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    content = json.loads(json.dumps(asdict(manifest)))  # as it will be read: keys are strings, tuples are lists
    if not manifest.hosts:
        del content["hosts"]
    write_text(directory / MANIFEST, json.dumps(content | {OWN_CHECKSUM: manifest_digest(content)}, indent=1))


def read_manifest(directory: Path) -> Manifest:
    """Raises `DamagedCheckpoint` when it is missing, unreadable or not what was written, or not the one of this
    directory; `BadInput` when it is of another format version."""
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_text())
        version = content["format_version"]
        sound = content.get(OWN_CHECKSUM) == manifest_digest(content)
        # where there is a checksum it must fit, lest a flipped digit pass for another format
        if isinstance(version, int) and version != FORMAT_VERSION and (sound or OWN_CHECKSUM not in content):
            which = "newer" if version > FORMAT_VERSION else "older"
            raise BadInput(
                f"{path}: format version {version}, this program reads {FORMAT_VERSION}: use the {which} program"
            )
        if not sound:
            raise DamagedCheckpoint(f"{path}: its checksum does not fit its content")
        manifest = _SCHEMA.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise DamagedCheckpoint(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path}: {type(error).__name__}: {error}") from None
    if _DIRECTORY.fullmatch(directory.name) and step_of(directory) != manifest.step:
        raise DamagedCheckpoint(f"{path}: is of step {manifest.step}, its folder is named {directory.name}")
    strange = [name for name in manifest.files if not _RANK_FILE.fullmatch(name)]
    if strange:  # a path out of the directory, for instance
        raise DamagedCheckpoint(f"{path}: {strange[0]!r} is no name of a rank's file")
    return manifest


def verify(directory: Path) -> Manifest:
    """Check that every file named by the manifest is there with the right size and sha256.

    Reads the whole checkpoint once. Raises `DamagedCheckpoint`, and `BadInput` as `read_manifest` does."""
    manifest = read_manifest(directory)
    require_all_here(directory, manifest)
    for name in manifest.files:
        verify_file(directory, name, manifest.files[name])
    return manifest


def require_all_here(directory: Path, manifest: Manifest) -> None:
    """Raises `DamagedCheckpoint` where files are missing, `ScatteredCheckpoint` if they lie on other machines."""
    if missing := files_missing(directory, manifest):
        raise not_here(directory, manifest, missing)


def files_missing(directory: Path, manifest: Manifest) -> list[str]:
    return [name for name in sorted(manifest.files) if not os.path.lexists(directory / name)]


def not_here(directory: Path, manifest: Manifest, missing: list[str]) -> DamagedCheckpoint:
    """What to raise where the files `missing`, at least one, are not found."""
    if missing[0] not in manifest.hosts:
        return DamagedCheckpoint(f"{directory / missing[0]}: missing")
    by_host: dict[str, list[str]] = {}
    for name in missing:
        by_host.setdefault(manifest.hosts.get(name, "another machine"), []).append(name)
    shown = [f"{', '.join(names[:4])}{', …' if len(names) > 4 else ''} of {host}" for host, names in by_host.items()]
    return ScatteredCheckpoint(
        f"{directory}: {len(missing)} of its {len(manifest.files)} files not here but on other machines' own disks "
        f"({'; '.join(shown)}): resume the run with those machines, which gathers them, or copy the files together"
    )


def set_aside(directory: Path) -> Path:
    """Rename a checkpoint that the run does not go on from: its new path. Raises OSError."""
    aside = directory.with_name(f"set_aside_{directory.name}_{time.strftime('%Y%m%d_%H%M%S')}")
    directory.rename(aside)
    return aside


def verify_file(
    directory: Path, name: str, expected: FileRecord, progress: Callable[[int], None] = lambda bytes_read: None
) -> None:
    """Check one rank's file. Raises `DamagedCheckpoint`."""
    path = directory / name
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):  # a link out of the directory, or a device that never ends
            raise DamagedCheckpoint(f"{path}: not a regular file")
        size = status.st_size
        if size != expected.bytes:
            raise DamagedCheckpoint(f"{path}: {size} bytes, the manifest says {expected.bytes}")
        if sha256(path, progress) != expected.sha256:
            raise DamagedCheckpoint(f"{path}: sha256 differs from the manifest's")
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path}: missing") from None
    except OSError as error:
        raise DamagedCheckpoint(f"{path}: {error.strerror}") from None


def manifest_digest(content: dict[str, Any]) -> str:
    """sha256 of a manifest's content, its own checksum left out: a flipped byte must not pass for another recipe.

    Of the JSON with sorted keys and no white space, whatever the layout of the file."""
    signed = {key: value for key, value in content.items() if key != OWN_CHECKSUM}
    return hashlib.sha256(json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
