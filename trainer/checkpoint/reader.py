"""Loading: find the checkpoint to resume from and put it back, at any world size and any ZeRO stage.

The order matters. First the full fp32 weights go into the model; then the engine is built over the units that still
train, which casts and shards those weights as it always does; last, each rank overwrites its masters and moments with
the slices that it now owns. So the low-precision weights are right by construction, and only masters and moments are
stage-dependent, which `FreezingEngine.fragments` hides.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

from trainer.checkpoint.manifest import DamagedCheckpoint, Manifest, list_checkpoints, read_manifest, verify
from trainer.checkpoint.writer import MASTER
from trainer.engine.engine import FreezingEngine
from trainer.engine.frozen import FrozenArchive
from trainer.errors import BadInput


def find_checkpoint(root: Path, resume: str, warn: Callable[[str], None]) -> Path | None:
    """What `--resume auto|never|PATH` means for a run whose checkpoints are in `root`; None = start anew.

    `auto` takes the newest whole checkpoint; damaged ones are named through `warn` and passed over.
    Raises `BadInput` where `never` would overwrite checkpoints, and where there are checkpoints but none is whole: to
    start anew then would throw a run away."""
    present = list_checkpoints(root)
    if resume == "never":
        if present:
            raise BadInput(f"--resume never: {root} already holds {present[0].name}; choose another --output")
        return None
    if resume != "auto":
        return _chosen(Path(resume))
    for directory in present:
        try:
            verify(directory)
            return directory
        except DamagedCheckpoint as error:
            warn(f"passing over a damaged checkpoint: {error}")
    if present:
        raise BadInput(f"{root}: none of its {len(present)} checkpoints is whole; mend one, or choose another --output")
    return None


def _chosen(path: Path) -> Path:
    """A checkpoint directory itself, or a run directory, whose newest checkpoint is meant."""
    candidates = [path] if (path / "manifest.json").is_file() else list_checkpoints(path / "checkpoints")
    if not candidates:
        raise BadInput(f"--resume {path}: no checkpoint there (give a run directory or a step_… directory)")
    try:
        verify(candidates[0])
    except DamagedCheckpoint as error:
        raise BadInput(f"--resume: {error}") from None
    return candidates[0]


class Checkpoint:
    """An open checkpoint: its manifest, and any slice of any tensor in it."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.manifest: Manifest = read_manifest(directory)
        self._files = {name: safe_open(directory / name, framework="pt") for name in self.manifest.files}
        self._parts: dict[tuple[str, str], list[tuple[int, int, str, str]]] = defaultdict(list)
        for file_name, file in self._files.items():
            for key in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                kind, name, start = key.split(":")
                length = file.get_slice(key).get_shape()[0]
                self._parts[kind, name].append((int(start), length, file_name, key))
        for parts in self._parts.values():
            parts.sort()

    def read(self, kind: str, name: str, start: int, length: int) -> torch.Tensor:
        """Elements [start, start + length) of a flattened tensor, fp32 on the host. `kind`: master, exp_avg, …"""
        parts = self._parts[kind, name]
        pieces, position = [], start
        first = max(bisect_right(parts, (start, float("inf"))) - 1, 0)
        for part_start, part_length, file_name, key in parts[first:]:
            if position >= start + length or part_start > position:
                break
            end = min(start + length, part_start + part_length)
            pieces.append(self._files[file_name].get_slice(key)[position - part_start : end - part_start])
            position = end
        if position != start + length:
            raise DamagedCheckpoint(f"{self.directory}: {kind} of {name} lacks elements from {position}")
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    @torch.no_grad()
    def load_weights(self, model: torch.nn.Module) -> None:
        """Copy every parameter in fp32 into a model that no engine holds yet. Raises `BadInput` for another model."""
        parameters = dict(model.named_parameters())
        for name, shape in self.manifest.shapes.items():
            here = list(parameters[name].shape) if name in parameters else None
            if here != shape:
                raise BadInput(f"{self.directory}: {name} has shape {shape} there and {here} in this recipe's model")
        if missing := parameters.keys() - self.manifest.shapes.keys():
            raise BadInput(f"{self.directory}: holds no {min(missing)}: another model")
        for name, parameter in parameters.items():
            parameter.copy_(self.read(MASTER, name, 0, parameter.numel()).view_as(parameter))

    @torch.no_grad()
    def load_engine(self, engine: FreezingEngine) -> None:
        """Copy masters and moments into the fragments that this rank owns, and restore counts and loss scale."""
        engine.load_resume_state(self.manifest.engine)
        for fragment in engine.fragments(owned_only=False):
            for kind, values in {MASTER: fragment.master, **fragment.moments}.items():
                values.copy_(self.read(kind, fragment.name, fragment.start, fragment.length))

    def load_archive(self, archive: FrozenArchive, frozen: set[str], rank: int, world_size: int) -> None:
        """Give this rank its share of the frozen units' fp32 weights, for the checkpoints to come."""
        sizes = [(name, int(torch.Size(self.manifest.shapes[name]).numel())) for name in sorted(frozen)]
        archive.restore(sizes, lambda name, start, length: self.read(MASTER, name, start, length), rank, world_size)
