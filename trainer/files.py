"""Files and folders that are either whole or absent."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the place of `path` when the block ends without an exception.

    Written as `path`.tmp, synced to disk and renamed, so that neither a killed process nor a power cut leaves half a
    file under the real name."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """`replace_file` for a small text."""
    with replace_file(path) as stream:
        stream.write(text.encode())


def sync_directory(path: Path) -> None:
    """A rename is on disk only once its directory is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `path`, a folder or nothing, when the block ends without an
    exception. What it holds must be on disk by then (`replace_file`).

    Filled under a hidden name beside it and renamed. A process that is killed in the moment between two renames leaves
    nothing under the name, and the folder that was there under `.NAME.replaced.tmp`."""
    temporary, replaced = (path.with_name(f".{path.name}{end}") for end in (".tmp", ".replaced.tmp"))
    for stale in (temporary, replaced):
        if stale.exists():
            shutil.rmtree(stale)
    try:
        temporary.mkdir()
        yield temporary
        sync_directory(temporary)
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)
