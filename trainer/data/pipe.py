"""Shards from commands (`pipe:`), which cannot be read at a place of one's choosing: a plain WebDataset pipeline.

Shards are drawn at random for ever (resampled), their samples go through a shuffle buffer. So every rank has as many
micro-batches as the others, but a sample may come twice before another comes once, and a resumed run draws anew. What
`trainer.data.order` promises for lanes holds here only for crops and masks, whose keys are those of the position.

Python's tar reader ends quietly where a stream is cut off or a header is damaged, and pipelines built on it with it.
So here a shard counts as read only if an end-of-archive mark came, nothing after it, and the command succeeded."""

import hashlib
import random
import re
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from braceexpand import braceexpand

from trainer.data.errors import BadSample, ShardError
from trainer.data.orphans import PROCESS_GROUPS, end_group
from trainer.data.reader import IMAGE_EXTENSIONS, NO_LABEL, Sample, parse_label
from trainer.data.tar_members import key_of, shown
from trainer.data.urls import PIPE, redact
from trainer.errors import BadInput

_FIRST_FILL = 256  # samples in the shuffle buffer before the first is drawn; it grows while the run goes on
_EXIT_SECONDS = 60.0  # for a command to end after its output has ended
_LARGEST_MEMBER = 2**31  # bytes; a damaged size must not become an allocation
_OF_THE_SHELL = re.compile(r"\$\{[^{}]*\}|\\.?", re.DOTALL)  # ${VARIABLES} and \escapes are not ours to expand

Members = dict[str, Any]  # WebDataset's form of a sample: the content of each member by extension, __key__, __url__


@dataclass(frozen=True)
class PipeSource:
    """Commands that write a tar each, in the notation of braces (`pipe:cat train-{000..255}.tar`), and the number of
    samples that the user calls an epoch.

    Raises BadInput if a brace has no partner."""

    path: str
    num_samples: int

    def __post_init__(self) -> None:
        self.commands()

    @property
    def name(self) -> str:
        """The commands for messages, without the secrets in their URLs."""
        return redact(self.path)

    @property
    def content_hash(self) -> str:
        """Identifies the source as well as can be: sha256 of the commands (without the secrets in their URLs) and the
        number of samples."""
        return hashlib.sha256(f"{self.name} {self.num_samples}".encode()).hexdigest()

    def commands(self) -> list[str]:
        """A `pipe:` command for each shard. Only `{a..b}` and `{a,b}` are expanded, as a shell does it; the rest is
        the shell's, `${VARIABLES}` included. WebDataset would put values of its own in their place, and a secret among
        them would show in messages."""
        escaped = _OF_THE_SHELL.sub(lambda match: re.sub(r"[\\{},.]", r"\\\g<0>", match[0]), self.path)
        try:
            return list(braceexpand(escaped))
        except ValueError as error:
            raise BadInput(
                f"{self.name}: a brace without its partner: close it, or put the command into a script"
            ) from error

    def samples(self, seed: int, buffer: int) -> Iterator[Members]:
        """Samples without end, shuffled in a buffer of at most `buffer`; `parse_members` takes them apart.

        Raises ShardError naming the command if it fails, or its output is no whole tar or holds no samples."""
        import webdataset as wds  # seconds, which those who read lanes need not wait for

        pipeline = wds.DataPipeline(
            wds.ResampledShards(self.commands(), seed=seed, worker_seed=lambda: 0, deterministic=True),
            _members_of_shards,
            wds.tariterators.group_by_keys,
            wds.shuffle(buffer, initial=min(buffer, _FIRST_FILL), rng=random.Random(seed)),
        )
        try:
            yield from pipeline
        except ValueError as error:  # of group_by_keys: two members of one name
            if isinstance(error, ShardError):
                raise
            raise ShardError(f"{self.name}: {error.args[0]}") from error

    def first_samples(self, count: int) -> list[Sample]:
        """A few samples, always the same while the commands give the same. Raises as `samples` and `parse_members`."""
        return [parse_members(members) for members in islice(self.samples(seed=0, buffer=1), count)]


def _members_of_shards(shards: Iterable[dict[str, str]]) -> Iterator[Members]:
    """Each file of each shard, as WebDataset's own tar reader gives them; an empty dict ends a shard."""
    for shard in shards:
        yield from _members(shard["url"])
        yield {}


def _members(url: str) -> Iterator[Members]:
    """The samples' files in the tar that a command writes. Raises ShardError unless both the command and the tar end
    well and there was one: drawn again and again, shards without samples would keep the reader busy for ever."""
    command = url.removeprefix(PIPE)
    # A session of its own: a signal to all processes of the job must not cut the stream before the run has saved.
    process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    PROCESS_GROUPS.add(process.pid)
    problem, ended, empty = None, False, True
    try:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for member in tar:
                if member.isreg() and key_of(member.name):
                    empty = False
                    yield {"fname": member.name, "data": _content(tar, member), "__url__": redact(url)}
            problem = _missing_end(tar.fileobj)
        ended = True
    except (tarfile.TarError, EOFError, OSError) as error:
        problem, ended = f"{error}; if it is compressed, decompress it in the command", True
    finally:
        process.stdout.close()
        code = _exit_code(process, _EXIT_SECONDS if ended else 0.0)  # not ended: nobody wants more of it
        PROCESS_GROUPS.discard(process.pid)
    if problem or code:
        damage = f", its tar is not whole: {problem}" if problem else ""
        raise ShardError(f"{redact(url)}: the command ended with exit code {code}{damage}")
    if empty:
        raise ShardError(f"{redact(url)}: its tar holds no samples")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > _LARGEST_MEMBER:
        raise tarfile.ReadError(f"{shown(member.name)} claims to have {member.size} bytes")
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _exit_code(process: subprocess.Popen[bytes], patience: float) -> int:
    """Waits for a command to end, and ends it and whatever it started when the patience is over."""
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        end_group(process.pid)
        return process.wait()


def _missing_end(rest: Any) -> str | None:
    """What is wrong with the bytes after the last member and one more block, where the tar reader stopped: an archive
    ends with two blocks of zeros, and zeros alone may follow."""
    length = 0
    while chunk := rest.read(1 << 20):
        length += len(chunk)
        if any(chunk):
            return "a damaged header, or data after its end"
    return None if length >= tarfile.BLOCKSIZE else "cut off"


def parse_members(members: Members) -> Sample:
    """A sample from its members. Raises BadSample where there is no image, or a label that is none."""
    where, key = members["__url__"], members["__key__"]
    image = next((members[extension] for extension in IMAGE_EXTENSIONS if extension in members), None)
    if image is None:
        raise BadSample(f"{where}, sample {shown(key)}: no image (.{', .'.join(IMAGE_EXTENSIONS)}) among its members")
    try:
        label = parse_label(members["cls"]) if "cls" in members else NO_LABEL
    except ValueError as error:
        raise BadSample(f"{where}, sample {shown(key)}: {error}") from error
    return Sample(key, image, label, where)
