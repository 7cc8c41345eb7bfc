"""metrics.jsonl and TensorBoard: what happened, one event a line, written by rank 0 alone."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trainer.files import write_text


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All events of a run, oldest first; a last line cut short by a crash is left out."""
    path = run / "metrics.jsonl"
    events = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except ValueError:
            break
    return events


def append_event(run: Path, event: str, **fields: Any) -> bool:
    """Add an event to metrics.jsonl of a run that this process does not carry on. Returns whether it is there now.

    One write to the end of the file, which does no harm to a run that is under way. Nothing is written where there is
    no such file, where it may not be written, or where a crash cut its last line short."""
    path = run / "metrics.jsonl"
    line = (json.dumps({"event": event, **_without_nan(fields)}) + "\n").encode()
    try:
        if path.read_bytes()[-1:] not in (b"", b"\n"):
            return False
        with open(path, "r+b", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_APPEND)) as file:
            return file.write(line) == len(line)
    except OSError:
        return False


class Metrics:
    """Appends events. Opening at a step > 0 first drops what an earlier process wrote beyond that step, since those
    steps are about to be taken again.

    A disk that fills up later does not end the training: `warn` is told once, events are kept in memory until they can
    be written, and TensorBoard's are given up."""

    def __init__(self, run: Path, start_step: int, tensorboard: bool, warn: Callable[[str], None] = print):
        self._path = run / "metrics.jsonl"
        kept = [event for event in read_metrics(run) if start_step and _before(event, start_step)]
        write_text(self._path, "".join(json.dumps(event) + "\n" for event in kept))
        self._file = self._path.open("ab", buffering=0)
        self._unwritten = b""
        self._warn = warn
        self._warned = False
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=start_step + 1 if start_step else 0)

    def write(self, event: str, **fields: Any) -> None:
        self._unwritten += (json.dumps({"event": event, **_without_nan(fields)}) + "\n").encode()
        self._guarded(self._write_out)
        if self._board is not None and event in ("step", "freeze", "evaluation"):
            self._guarded(lambda: self._draw_scalars(event, fields), gives_up_board=True)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Show a PNG in TensorBoard as well."""
        if self._board is not None:
            from PIL import Image

            picture = np.asarray(Image.open(path).convert("RGB"))
            board = self._board
            self._guarded(lambda: board.add_image(name, picture, step, dataformats="HWC"), gives_up_board=True)

    def close(self) -> None:
        self._guarded(self._write_out)
        self._guarded(lambda: os.fsync(self._file.fileno()))
        self._file.close()
        if self._board is not None:
            self._guarded(self._board.close)

    def _write_out(self) -> None:
        while self._unwritten:
            self._unwritten = self._unwritten[os.write(self._file.fileno(), self._unwritten) :]

    def _draw_scalars(self, event: str, fields: dict[str, Any]) -> None:
        for name, value in _scalars(event, fields):
            self._board.add_scalar(name, value, fields["step"])

    def _guarded(self, write: Callable[[], None], *, gives_up_board: bool = False) -> None:
        try:
            write()
        except OSError as error:
            if gives_up_board:
                self._board = None  # its writer does not recover
            if not self._warned:
                self._warn(f"{self._path.parent}: metrics cannot be written ({error}); training goes on")
                self._warned = True


def _before(event: dict[str, Any], step: int) -> bool:
    """Probes and freezes at `step` come after the checkpoint of `step` and are done again; all else there is past."""
    at = event.get("step", 0)
    return at < step or (at == step and event["event"] not in ("probe", "freeze"))


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(event: str, fields: dict[str, Any]) -> list[tuple[str, float]]:
    """TensorBoard names: train/loss, stage_loss/2, learning_rate/unit_05, freeze/seconds,
    evaluation/knn_mean_20_0.07_top1, …"""
    if event == "freeze":
        return [("freeze/seconds", fields["seconds"])]
    if event == "evaluation":
        if "results" not in fields:  # a validation while fine-tuning
            return [(f"evaluation/{name}", value) for name, value in fields.items() if name not in ("step", "epoch")]
        return [
            ("_".join(["evaluation/knn", row["pool"], str(row["k"]), f"{row['temperature']:g}", top]), row[top])
            for row in fields["results"]
            for top in ("top1", "top5")
        ]
    scalars = []
    for name, value in fields.items():
        if name == "loss_stages":
            scalars += [(f"stage_loss/{k}", v) for k, v in enumerate(value) if v is not None]
        elif name == "lr":
            scalars += [(f"learning_rate/unit_{k:02d}", v) for k, v in enumerate(value) if v is not None]
        elif name not in ("step", "nodes", "stragglers") and value is not None:
            scalars.append((f"train/{name}", value))
    return scalars
