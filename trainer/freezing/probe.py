"""Measures how far each block of the encoder has moved, on a fixed batch, for `plasticity.PlasticityPolicy` to decide.

Rank 0 measures and tells the others, so that all decide alike. What it compares with stands for a copy of the encoder
as it was at the last measurement: that copy's outputs on the batch, which say all that is asked of it, need no weights
and do not depend on how ZeRO divides them. Between measurements nothing of it is on the accelerator but one block.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.data.chosen import evenly_chosen
from trainer.data.errors import BadSample
from trainer.data.evaluation import centre_view
from trainer.data.source import DataSource
from trainer.engine.engine import FreezingEngine
from trainer.errors import BadInput
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM
from trainer.model.masking import mask_noise
from trainer.ranks import from_rank_zero


def probe_images(source: DataSource, count: int, size: int) -> Tensor:
    """Centre views of `count` samples all over the shards, uint8 [at most count, 3, size, size]; damaged ones left out.

    Raises BadInput if none can be decoded."""
    views = []
    for sample in evenly_chosen(source, count):
        try:
            views.append(centre_view(sample, size))
        except BadSample:  # the loader tells of it, by data.on_bad_sample
            continue
    if not views:
        raise BadInput(f"{source.name}: none of the {count} images to measure plasticity on can be decoded")
    return torch.stack(views)


class Probe:
    """The fixed batch, always masked alike, and the outputs of the reference."""

    def __init__(self, config: ModelConfig, images: Tensor, device: torch.device, dtype: torch.dtype):
        """`images`: uint8 [n, 3, H, W]. `dtype`: that of training."""
        self.reference: dict[str, Tensor] = {}
        """``unit_3`` → output of that unit at the last measurement, fp32 [n, 1 + K, D] on the host of rank 0; of the
        live units and the one below them. Replaced by each measurement, never written to."""
        self._num_units = config.num_units
        self._measures = dist.get_rank() == 0
        if self._measures:
            one_block = {"depth": 1, "stages": [0], "scales": [1.0], "stage_weights": None, "stage_weights_end": None}
            with torch.random.fork_rng(devices=[]):  # its weights are drawn, and replaced
                self._stand_in = LocalMIM(config.model_copy(update=one_block)).to(device, dtype)
            self._images = images.to(device)
            self._noise = mask_noise(torch.arange(len(images), device=device), config.num_patches)

    def load(self, reference: dict[str, Tensor]) -> None:
        """Go on with the reference of a checkpoint."""
        self.reference = reference if self._measures else {}

    @torch.no_grad()
    def measure(self, engine: FreezingEngine, first_live: int) -> list[float | None]:
        """How far each unit from `first_live` on has moved since the last call; None for the others, and all at first.

        A block's movement is ‖B(z) - B'(z)‖ / ‖B'(z) - z‖ over the whole batch: B' and z are the reference's block and
        its input, so that what the blocks below have changed does not count. For the patch embedding, which has no
        tokens as input, it is ‖E - E'‖ / ‖E'‖. Collective, between steps; the same on every rank."""
        moved: dict[int, Tensor] = {}
        outputs: list[Tensor] = []
        for unit in range(self._num_units):
            self._copy_weights(engine, unit)
            if not self._measures:
                continue
            if unit >= first_live and _key(unit) in self.reference:
                moved[unit] = self._movement(unit)
            outputs.append(self._run(unit, outputs[-1] if outputs else None))
        kept = range(max(0, first_live - 1), self._num_units)
        self.reference = {_key(unit): outputs[unit].float().cpu() for unit in kept} if self._measures else {}
        values = from_rank_zero(lambda: torch.stack([*moved.values()]).tolist() if moved else [])
        units = range(self._num_units - len(values), self._num_units)
        return [None] * (self._num_units - len(values)) + [values[unit - units.start] for unit in units]

    def _copy_weights(self, engine: FreezingEngine, unit: int) -> None:
        for name, weight in engine.whole_weights(_encoder_names(engine, unit)):
            if self._measures:
                self._stand_in.get_parameter(_name_in_stand_in(unit, name)).copy_(weight)

    def _run(self, unit: int, tokens: Tensor | None) -> Tensor:
        """The unit whose weights the stand-in has, on the output of the one before it."""
        if tokens is None:
            return self._stand_in.embed(self._images, self._noise)
        return self._stand_in.blocks[0](tokens)

    def _movement(self, unit: int) -> Tensor:
        before = self._referred(unit)
        given = self._referred(unit - 1) if unit else None
        contribution = before.float() if given is None else before.float() - given.float()
        return (self._run(unit, given).float() - before.float()).norm() / contribution.norm()

    def _referred(self, unit: int) -> Tensor:
        weight = self._stand_in.cls_token
        return self.reference[_key(unit)].to(weight.device, weight.dtype)  # exact: it came from this type


def _key(unit: int) -> str:
    return f"unit_{unit}"


def _encoder_names(engine: FreezingEngine, unit: int) -> list[str]:
    """Parameters of the unit's part of the encoder: its stage's are left out."""
    names = [name for name, _ in engine.model.named_parameters()]
    return [name for name in names if engine.model.unit_of(name) == unit and not name.startswith("stages.")]


def _name_in_stand_in(unit: int, name: str) -> str:
    return name.replace(f"blocks.{unit - 1}.", "blocks.0.", 1) if unit else name
