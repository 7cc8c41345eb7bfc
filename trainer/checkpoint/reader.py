"""Loading: put a checkpoint back into a model and an engine, at any world size and any ZeRO stage.

The order matters. First the full fp32 weights go into the model; then the engine is built over the units that still
train, which casts and shards those weights as it always does; last, each rank overwrites its masters and moments with
the slices that it now owns. So the low-precision weights are right by construction, and only masters and moments are
stage-dependent, which `FreezingEngine.fragments` hides.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from trainer.checkpoint.manifest import DamagedCheckpoint, Manifest, read_manifest, require_all_here
from trainer.checkpoint.state_file import MASTER, REFERENCE, split_key
from trainer.errors import BadInput

if TYPE_CHECKING:  # exports and pictures read checkpoints without waiting for DeepSpeed's import
    from trainer.engine.engine import FreezingEngine
    from trainer.engine.frozen import FrozenArchive

_Part = tuple[int, int, str, str]  # start, length, file name, key


class Checkpoint:
    """An open checkpoint: its manifest, and any slice of any tensor in it."""

    def __init__(self, directory: Path):
        """Raises `DamagedCheckpoint` if a file is no safetensors file, or if any element of a tensor is not there."""
        self.directory = directory
        self.manifest: Manifest = read_manifest(directory)
        require_all_here(directory, self.manifest)
        self._files = {}
        self._parts: dict[tuple[str, str], list[_Part]] = defaultdict(list)
        for file_name in self.manifest.files:
            try:
                self._files[file_name] = safe_open(directory / file_name, framework="pt")
                for kind, name, part in self._parts_of(file_name):
                    self._parts[kind, name].append(part)
            except (SafetensorError, OSError, ValueError) as error:
                raise DamagedCheckpoint(f"{directory / file_name}: {error}") from None
        for parts in self._parts.values():
            parts.sort()
        self._require_all_elements()

    def _parts_of(self, file_name: str) -> Iterator[tuple[str, str, _Part]]:
        file = self._files[file_name]
        for key in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
            kind, name, start = split_key(key)
            view = file.get_slice(key)
            if len(view.get_shape()) != 1 or view.get_dtype() != "F32" or name not in self._shapes(kind):
                raise ValueError(f"{key} is no fp32 part of a tensor in the manifest")
            yield kind, name, (start, view.get_shape()[0], file_name, key)

    def _require_all_elements(self) -> None:
        required = [(kind, name) for kind in (MASTER, REFERENCE) for name in self._shapes(kind)]
        for key in [*self._parts, *required]:
            kind, name = key
            expected = 0
            for start, length, _, _ in self._parts.get(key, []):
                if start == expected:
                    expected += length
            if expected != torch.Size(self._shapes(kind)[name]).numel():
                raise DamagedCheckpoint(f"{self.directory}: {kind} of {name} lacks elements from {expected}")

    def _shapes(self, kind: str) -> dict[str, list[int]]:
        return self.manifest.reference if kind == REFERENCE else self.manifest.shapes

    def numel(self, name: str) -> int:
        return int(torch.Size(self.manifest.shapes[name]).numel())

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

    def weights(self) -> dict[str, torch.Tensor]:
        """Every parameter in fp32 on the host, frozen ones too, by name."""
        return {
            name: self.read(MASTER, name, 0, self.numel(name)).view(shape)
            for name, shape in self.manifest.shapes.items()
        }

    @torch.no_grad()
    def load_weights(self, model: torch.nn.Module) -> None:
        """Copy every parameter in fp32 into a model that no engine holds yet. Raises `BadInput` for another model."""
        self.require_fits(model)
        for name, parameter in model.named_parameters():
            parameter.copy_(self.read(MASTER, name, 0, parameter.numel()).view_as(parameter))

    def require_fits(self, model: torch.nn.Module) -> None:
        """Raises `BadInput` unless `model`, which may be on the meta device, has these parameters in these shapes."""
        parameters = dict(model.named_parameters())
        for name, shape in self.manifest.shapes.items():
            here = list(parameters[name].shape) if name in parameters else None
            if here != shape:
                raise BadInput(f"{self.directory}: {name} has shape {shape} there and {here} in this recipe's model")
        if missing := parameters.keys() - self.manifest.shapes.keys():
            raise BadInput(f"{self.directory}: holds no {min(missing)}: another model")

    @torch.no_grad()
    def load_engine(self, engine: "FreezingEngine") -> None:
        """Copy masters and moments into the fragments that this rank owns, and restore counts and loss scale."""
        engine.load_resume_state(self.manifest.engine)
        for fragment in engine.fragments(owned_only=False):
            for kind, values in {MASTER: fragment.master, **fragment.moments}.items():
                values.copy_(self.read(kind, fragment.name, fragment.start, fragment.length))

    def reference(self) -> dict[str, torch.Tensor]:
        """What a freezing policy that measures compares with, by name; empty for the others."""
        shapes = {name: torch.Size(shape) for name, shape in self.manifest.reference.items()}
        return {name: self.read(REFERENCE, name, 0, shape.numel()).view(shape) for name, shape in shapes.items()}

    def load_archive(self, archive: "FrozenArchive", frozen: set[str], rank: int, world_size: int) -> None:
        """Give this rank its share of the frozen units' fp32 weights, for the checkpoints to come."""
        sizes = [(name, self.numel(name)) for name in sorted(frozen)]
        archive.restore(sizes, lambda name, start, length: self.read(MASTER, name, start, length), rank, world_size)
