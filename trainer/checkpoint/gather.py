"""A checkpoint whose files lie on several machines' own disks becomes whole on each of them, before it is read.

Each storage's leader takes part: whoever has a file reads it piece by piece, all others get each piece through the
network, and those who lack the file write it. Host memory: one piece. A file appears under its name when its checksum
is right, so a gathering that was broken off is taken up where it stopped.
"""

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainer.checkpoint.find import WholeCheckpoint
from trainer.checkpoint.manifest import set_aside, write_manifest
from trainer.checkpoint.progress import Progress
from trainer.errors import BadInput
from trainer.files import replace_file
from trainer.storages import Storages
from trainer.tracking.console import duration

PIECE_BYTES = 64 * 2**20
LONGEST_WAIT = timedelta(hours=1)
"""A rank that does not send or take a piece for so long is taken for lost."""


def gather(directory: Path, whole: WholeCheckpoint, storages: Storages, say: Callable[[str], None]) -> None:
    """Give every storage the files of the checkpoint that it lacks. Collective; does nothing where none lacks any.

    `say` is told how far it has come. Raises `BadInput` on every rank where there is no room, before anything is sent,
    and where a file cannot be written."""
    lacking = {leader: set(whole.manifest.files) - whole.held.get(leader, frozenset()) for leader in storages.all}
    names = sorted({name for names in lacking.values() for name in names})
    if not names:
        return
    started, size = time.monotonic(), sum(whole.manifest.files[name].bytes for name in names)
    storages.on_each(lambda: _require_room(directory, whole, lacking[storages.rank]))
    storages.on_each(lambda: _make_ready(directory, whole, storages))
    say(f"gathering {directory.name}: not all {len(lacking)} storages have {len(names)} files of {size / 1e6:.1f} MB")
    progress = Progress(f"gathering {directory.name}", size, say)
    with contextlib.closing(_Gathering(directory, whole, storages, lacking, progress)) as gathering:
        for name in names:
            storages.on_each(partial(gathering.pass_on, name))
    say(f"gathered {directory.name} in {duration(time.monotonic() - started)}")


def _require_room(directory: Path, whole: WholeCheckpoint, lacking: set[str]) -> None:
    needed = sum(whole.manifest.files[name].bytes for name in lacking)
    there = next(folder for folder in directory.parents if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise BadInput(
            f"{directory}: no room to gather it ({needed:,} bytes are needed, {free:,} are free): make room, or leave "
            "this machine out"
        )


def _make_ready(directory: Path, whole: WholeCheckpoint, storages: Storages) -> None:
    """The folder with the manifest, which then lacks files, as it does where the files were written. What is there of
    another or a damaged manifest makes way."""
    if storages.rank in whole.held:
        return
    try:
        if directory.exists() and any(directory.iterdir()):
            aside = set_aside(directory)
            storages.say(f"set aside {directory.name}, damaged or not that of the others: delete {aside} if unwanted")
        directory.mkdir(parents=True, exist_ok=True)
        write_manifest(directory, whole.manifest)
    except OSError as error:
        raise _cannot_gather(directory, error) from None


def _cannot_gather(path: Path, error: OSError) -> BadInput:
    return BadInput(f"{path}: cannot be gathered ({error.strerror or error}): mend that, or leave this machine out")


class _Gathering:
    """The passing on of one file after the other. Made by all ranks; the leaders call `pass_on` in the same order."""

    def __init__(
        self,
        directory: Path,
        whole: WholeCheckpoint,
        storages: Storages,
        lacking: dict[int, set[str]],
        progress: Progress,
    ):
        self._directory, self._whole, self._storages = directory, whole, storages
        self._lacking, self._progress = lacking, progress
        # gloo carries tensors on the host also where training's own group is NCCL's
        self._group: Any = dist.new_group(storages.all, backend="gloo", timeout=LONGEST_WAIT)
        largest = max(record.bytes for record in whole.manifest.files.values())
        self._buffer = torch.empty(min(PIECE_BYTES, largest) if storages.leads else 0, dtype=torch.uint8)

    def pass_on(self, name: str) -> None:
        source = min(leader for leader, files in self._whole.held.items() if name in files)
        pieces = self._pieces(name, source)
        try:
            if name in self._lacking[self._storages.rank]:
                self._write(name, pieces, source)
        finally:
            for _ in pieces:  # whatever went wrong here, the others want every piece
                pass
        self._progress.done(self._whole.manifest.files[name].bytes)

    def close(self) -> None:
        dist.destroy_process_group(self._group)

    def _pieces(self, name: str, source: int) -> Iterator[memoryview]:
        """Each is valid until the next. A file that cannot be read on the way shows in the checksum."""
        size, path = self._whole.manifest.files[name].bytes, self._directory / name
        for start in range(0, size, PIECE_BYTES):
            piece = self._buffer[: min(PIECE_BYTES, size - start)]
            if source == self._storages.rank:
                with contextlib.suppress(OSError), path.open("rb") as file:
                    file.seek(start)
                    file.readinto(piece.numpy().data)
            dist.broadcast(piece, src=source, group=self._group)
            self._progress.at(start + len(piece))
            yield piece.numpy().data

    def _write(self, name: str, pieces: Iterator[memoryview], source: int) -> None:
        path, digest = self._directory / name, hashlib.sha256()
        try:
            with replace_file(path) as stream:
                for piece in pieces:
                    stream.write(piece)
                    digest.update(piece)
                if digest.hexdigest() != self._whole.manifest.files[name].sha256:
                    raise OSError(f"what {self._storages.name(source)} sent has another sha256 than the manifest says")
        except OSError as error:
            raise _cannot_gather(path, error) from None
