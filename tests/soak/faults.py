"""What is done to a training: interruptions of its processes, and damage to its checkpoints between two attempts."""

import contextlib
import hashlib
import json
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from tests.soak.attempt import Attempt

FILE_SIZE_LIMIT = 2**16
"""Bytes that a file may have once the disk is "full": enough for the metrics, too little for a rank's state."""


@dataclass(frozen=True)
class Interruption:
    """`graceful`: all ranks are to save the step that they are at and leave with 75. `says`: they are to end with 1,
    and these words. `by_launcher`: needs the deepspeed command to be one of the processes."""

    name: str
    strike: Callable[[Attempt, random.Random], None]
    moment: Literal["at a step", "while starting", "inside a save", "at a freeze"] = "at a step"
    graceful: bool = False
    says: str = ""
    by_launcher: bool = False

    @property
    def code(self) -> int | None:
        """The exit code of every rank; None where the run is not asked to end in any particular way."""
        return 75 if self.graceful else 1 if self.says else None


def kill_one(attempt: Attempt, rng: random.Random) -> None:
    signal_one(signal.SIGKILL)(attempt, rng)


def kill_all(attempt: Attempt, rng: random.Random) -> None:
    send(signal.SIGKILL, attempt.ranks())


def kill_everything(attempt: Attempt, rng: random.Random) -> None:
    for process in attempt.processes:
        process.kill()


def signal_one(number: signal.Signals) -> Callable[[Attempt, random.Random], None]:
    return lambda attempt, rng: send(number, rng.sample(attempt.ranks(), k=min(1, len(attempt.ranks()))))


def signal_all(number: signal.Signals) -> Callable[[Attempt, random.Random], None]:
    return lambda attempt, rng: send(number, attempt.ranks())


def signal_launcher(number: signal.Signals) -> Callable[[Attempt, random.Random], None]:
    return lambda attempt, rng: attempt.processes[0].send_signal(number)


def fill_the_disk(attempt: Attempt, rng: random.Random) -> None:
    """From now on no rank can write a file of more than `FILE_SIZE_LIMIT` bytes: the next save fails half-way."""
    for rank in attempt.ranks():
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.rlimit(psutil.RLIMIT_FSIZE, (FILE_SIZE_LIMIT, FILE_SIZE_LIMIT))


def send(number: signal.Signals, ranks: list[psutil.Process]) -> None:
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.send_signal(number)


INTERRUPTIONS = (
    Interruption("SIGKILL to one rank", kill_one),
    Interruption("SIGKILL to all ranks", kill_all),
    Interruption("SIGKILL to all ranks at a freeze", kill_all, "at a freeze"),
    Interruption("SIGKILL to one rank at a freeze", kill_one, "at a freeze"),
    Interruption("SIGKILL to all ranks inside a save", kill_all, "inside a save"),
    Interruption("SIGKILL to one rank inside a save", kill_one, "inside a save"),
    Interruption("SIGKILL to all processes while starting", kill_everything, "while starting"),
    Interruption("SIGTERM to one rank", signal_one(signal.SIGTERM), graceful=True),
    Interruption("SIGUSR1 to one rank", signal_one(signal.SIGUSR1), graceful=True),
    Interruption("SIGINT to one rank", signal_one(signal.SIGINT), graceful=True),
    Interruption("SIGTERM to all ranks", signal_all(signal.SIGTERM), graceful=True),
    Interruption("SIGUSR1 to all ranks", signal_all(signal.SIGUSR1), graceful=True),
    Interruption("SIGKILL to the deepspeed command", signal_launcher(signal.SIGKILL), graceful=True, by_launcher=True),
    Interruption("SIGTERM to the deepspeed command", signal_launcher(signal.SIGTERM), graceful=True, by_launcher=True),
    Interruption("SIGKILL to one rank under deepspeed", kill_one, by_launcher=True),
    Interruption("no room for a checkpoint", fill_the_disk, says="not saved, earlier ones are intact"),
)


def truncate(checkpoint: Path, rng: random.Random) -> None:
    file = _a_file(checkpoint, rng)
    with file.open("r+b") as stream:
        stream.truncate(rng.randrange(file.stat().st_size))


def flip_a_bit(checkpoint: Path, rng: random.Random) -> None:
    file = _a_file(checkpoint, rng)
    with file.open("r+b") as stream:
        place = rng.randrange(file.stat().st_size)
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 1 << rng.randrange(8)]))


def delete_a_file(checkpoint: Path, rng: random.Random) -> None:
    _a_file(checkpoint, rng).unlink()


def undo_the_rename(checkpoint: Path, rng: random.Random) -> None:
    checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.tmp"))


def delete_the_manifest(checkpoint: Path, rng: random.Random) -> None:
    (checkpoint / "manifest.json").unlink()


def scramble_the_manifest(checkpoint: Path, rng: random.Random) -> None:
    (checkpoint / "manifest.json").write_bytes(rng.randbytes(500))


def cut_the_manifest(checkpoint: Path, rng: random.Random) -> None:
    text = (checkpoint / "manifest.json").read_text()
    (checkpoint / "manifest.json").write_text(text[: rng.randrange(len(text) - 1)])


def scramble_latest(checkpoint: Path, rng: random.Random) -> None:
    (checkpoint.parent / "latest").write_bytes(rng.randbytes(20))


DAMAGE: dict[str, Callable[[Path, random.Random], None]] = {
    "newest checkpoint: a file cut short": truncate,
    "newest checkpoint: a bit flipped": flip_a_bit,
    "newest checkpoint: a rank's file deleted": delete_a_file,
    "newest checkpoint: not renamed yet": undo_the_rename,
    "newest checkpoint: manifest deleted": delete_the_manifest,
    "newest checkpoint: manifest of random bytes": scramble_the_manifest,
    "newest checkpoint: manifest cut short": cut_the_manifest,
    "`latest` of random bytes": scramble_latest,
}


def whole_checkpoints(run: Path) -> list[Path]:
    """The checkpoints whose files are as their manifests say, oldest first; the trainer's own check is not asked."""
    return [path for path in sorted((run / "checkpoints").glob("step_*")) if _is_whole(path)]


def _is_whole(checkpoint: Path) -> bool:
    try:
        files = json.loads((checkpoint / "manifest.json").read_text())["files"]
        return all(
            hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() == record["sha256"]
            for name, record in files.items()
        )
    except (OSError, ValueError):
        return False


def _a_file(checkpoint: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(checkpoint.glob("rank_*.safetensors")))
