"""Where a few dozen real photographs come from: two Debian packages, or the Python packages that are installed
anyway."""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from trainer.errors import BadInput

# Debian package, folder in it, and the files there that are drawings or patterns, not photographs.
_DEBIAN = {
    "lomiri-wallpapers-16.04": (
        "usr/share/backgrounds",
        {"analogpattern_by_Peter_Nerlich", "umang_by_Abhishek_Mudgal"},
    ),
    "scratch": (
        "usr/share/scratch/Media/Backgrounds",
        {"party-room", "room1", "room2", "room3", "spotlight-stage", "woods-and-bench", "brick-wall1", "school2"},
    ),
}
# Python package, folder in it, and the photographs there.
_PYTHON = {
    "skimage": ("data", "astronaut.png camera.png chelsea.png coffee.png hubble_deep_field.jpg rocket.jpg"),
    "sklearn": ("datasets/images", "china.jpg flower.jpg"),
}
_COMMAND_SECONDS = 120
_APT_OPTIONS = ("-o", "Acquire::http::Timeout=15", "-o", "Acquire::Retries=1")


class FetchError(Exception):
    """A Debian package could not be fetched or unpacked here."""


def user_cache(name: str) -> Path:
    """The folder of that name among the user's caches. Raises BadInput where there is no home directory."""
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise BadInput("no home directory to keep downloads in: set XDG_CACHE_HOME to a folder") from error
    return Path(caches, "localmim-freeze", name)


def debian_photographs(cache: Path) -> list[Path]:
    """The photographs in the Debian packages, which are downloaded by name and unpacked into `cache` unless they lie
    there already. Nothing is installed. Raises FetchError."""
    photographs = []
    for package, (folder, drawings) in _DEBIAN.items():
        root = cache / package
        try:
            if not root.is_dir():
                fetch_package(package, root)
        except OSError as error:
            raise FetchError(str(error)) from error
        found = sorted(path for path in (root / folder).rglob("*.jpg") if path.stem not in drawings)
        if not found:
            raise FetchError(f"{root / folder} holds no photographs")
        photographs += found
    return photographs


def packaged_photographs() -> list[Path]:
    """The photographs inside scikit-image and scikit-learn. Raises BadInput if neither is installed."""
    photographs = []
    for package, (folder, names) in _PYTHON.items():
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            root = Path(spec.origin).parent / folder
            photographs += [root / name for name in names.split() if (root / name).is_file()]
    if not photographs:
        raise BadInput("no photographs: neither apt-get nor scikit-image and scikit-learn are here; pip install them")
    return photographs


def fetch_package(package: str, root: Path) -> None:
    """Downloads a Debian package and unpacks it as the folder `root`, which appears only when it is complete."""
    print(f"fetching the Debian package {package}", file=sys.stderr)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
        try:
            _run(["apt-get", "download", package, *_APT_OPTIONS], scratch)
        except FetchError:  # package lists may be missing or old
            _run(["apt-get", "update", *_APT_OPTIONS], scratch)
            _run(["apt-get", "download", package, *_APT_OPTIONS], scratch)
        (archive,) = Path(scratch).glob("*.deb")
        unpacked = Path(scratch, "unpacked")
        _run(["dpkg-deb", "-x", str(archive), str(unpacked)], scratch)
        shutil.move(unpacked, root)


def _run(command: list[str], folder: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=_COMMAND_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(str(error)) from error
    except subprocess.CalledProcessError as error:
        complaint = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        raise FetchError(f"{' '.join(command[:2])}: {complaint}") from error
