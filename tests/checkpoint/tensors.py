"""A training state without a model: what `engine.fragments` yields, of a size and content that a test chooses."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainer.checkpoint.find import checkpoint_candidates, first_whole
from trainer.checkpoint.manifest import FileRecord, Manifest, directory_name, verify, write_manifest
from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.state_file import MASTER, sha256, tensor_key, write_fp32
from trainer.engine.fragments import Fragment, even_slice
from trainer.engine.frozen import FrozenArchive


def manifest(step: int, shapes: dict[str, list[int]], **changes: Any) -> Manifest:
    content: dict[str, Any] = {
        "step": step, "frozen_units": 0, "world_size": 1, "zero_stage": 1, "precision": "fp32", "recipe": {},
        "index_hash": "hash", "engine": {"global_steps": step}, "shapes": shapes, "files": {},
    }  # fmt: skip
    return Manifest(**content | changes)


def write_by_hand(root: Path, step: int, weights: dict[str, torch.Tensor], world_size: int = 3, **changes: Any) -> Path:
    """A checkpoint with each weight cut over the ranks as ZeRO would, and its negative as a moment; in one process."""
    directory = root / directory_name(step)
    directory.mkdir(parents=True)
    files = {}
    for rank in range(world_size):
        tensors = {}
        for name, weight in weights.items():
            start, length = even_slice(weight.numel(), rank, world_size)
            if length:
                part = weight.reshape(-1)[start : start + length].clone()
                tensors |= {tensor_key(MASTER, name, start): part, tensor_key("exp_avg", name, start): -part}
        path = directory / f"rank_{rank:05d}.safetensors"
        with path.open("wb") as stream:
            write_fp32(stream, {key: list(values.shape) for key, values in tensors.items()}, tensors.values())
        files[path.name] = FileRecord(path.stat().st_size, sha256(path))
    shapes = {name: list(weight.shape) for name, weight in weights.items()}
    write_manifest(directory, manifest(step, shapes, world_size=world_size, files=files, **changes))
    return directory


def found_for(root: Path, resume: str, say: Callable[[str], None]) -> Path | None:
    """The checkpoint that a run goes on from; as `trainer.setup` finds it, but verified in one process."""
    return first_whole(checkpoint_candidates(root, resume), resume, say, verify)


class Counting:
    """Stands for the engine of one rank: a parameter of `numel` elements over all ranks, and a frozen one.

    After `count(step)` every element of the master is `step`, of the moments 2 · `step` and 3 · `step`."""

    def __init__(self, numel: int):
        rank, world_size = dist.get_rank(), dist.get_world_size()
        self.start, self.length = even_slice(numel, rank, world_size)
        self._tensors = torch.zeros(3, self.length)
        self.archive = FrozenArchive({"frozen": (rank, torch.full((1,), float(rank)))})
        self.shapes = {"trained": [numel], "frozen": [world_size]}

    def count(self, step: int) -> None:
        for factor, tensor in enumerate(self._tensors, start=1):
            tensor.fill_(factor * step)

    def fragments(self, *, owned_only: bool) -> Iterator[Fragment]:
        assert owned_only
        master, exp_avg, exp_avg_sq = self._tensors
        yield Fragment("trained", self.start, self.length, master, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq})


def require_counted(directory: Path) -> None:
    """Fails unless every element of a `Counting` state is what belongs to the checkpoint's step."""
    checkpoint = Checkpoint(directory)
    step, numel = checkpoint.manifest.step, checkpoint.numel("trained")
    for factor, kind in enumerate((MASTER, "exp_avg", "exp_avg_sq"), start=1):
        assert bool((checkpoint.read(kind, "trained", 0, numel) == factor * step).all()), (directory, kind)
    frozen = checkpoint.read(MASTER, "frozen", 0, checkpoint.numel("frozen"))
    assert frozen.tolist() == list(range(checkpoint.manifest.world_size))
