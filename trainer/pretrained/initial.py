"""The weights that a pre-training starts from in place of random ones: `--init`.

A start, no resumption: step, schedule, moments and the order of the data begin anew.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainer.errors import BadInput
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM
from trainer.model.positions import sincos_positions
from trainer.pretrained.load import load_pretrained
from trainer.pretrained.localmim_names import require_fixed_positions
from trainer.pretrained.weights import ENCODER_PARTS, Pretrained, last_norm
from trainer.ranks import on_every_rank

_OF_NO_WEIGHT = {"mask_ratio", "norm_eps", "stage_weights", "stage_weights_end"}
"""Keys of the model that may differ: its weights have the same meaning without them."""


@dataclass(frozen=True)
class Origin:
    """Where initial weights come from. ``lacking``: why the decoders are not among them; None where they are."""

    source: str
    lacking: str | None

    @property
    def extent(self) -> str:
        """``full`` or ``encoder``."""
        return "encoder" if self.lacking else "full"

    def __str__(self) -> str:
        if self.lacking is None:
            return f"{self.source}: encoder and decoders"
        return f"{self.source}: the encoder; the decoders are newly initialised, {self.lacking}"


@dataclass(frozen=True)
class InitialWeights:
    """For a `LocalMIM`, under its names, in fp32."""

    weights: dict[str, torch.Tensor]
    origin: Origin

    @torch.no_grad()
    def copy_into(self, model: LocalMIM) -> None:
        """Before an engine is built over the model."""
        for name, weight in self.weights.items():
            model.get_parameter(name).copy_(weight)


def read_together(path: Path, config: ModelConfig, say: Callable[[str], None]) -> InitialWeights:
    """Every rank reads `path`. Collective; raises `BadInput` on all ranks if any of them cannot use it, or if they have
    not read the same."""
    initial = on_every_rank(lambda: _read(path, config, say))
    require_same_weights(path, initial.weights, initial.origin.source)
    return initial


def require_same_weights(path: Path, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Every rank makes its own masters of what it has read. Collective; raises `BadInput` on all ranks if they have not
    read the same weights from `path`."""
    read: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(read, (_digest(weights), source))
    for rank, (digest, other) in enumerate(read):
        if digest != read[0][0]:
            raise BadInput(
                f"--init {path}: rank {rank} read other weights ({other}) than rank 0 ({read[0][1]}): give a file or "
                "a step_… directory that is the same on all machines and that nobody writes to"
            )


def _read(path: Path, config: ModelConfig, say: Callable[[str], None]) -> InitialWeights:
    try:
        return initial_weights(load_pretrained(path, like=config, say=say), config)
    except BadInput as error:
        raise BadInput(f"--init: {error}") from None


def initial_weights(pretrained: Pretrained, config: ModelConfig) -> InitialWeights:
    """What of `pretrained` a model of this configuration can start from: all of it where the decoders are alike too,
    else the encoder and the norm that reads its last block.

    Raises `BadInput`, naming the key, where the encoders differ."""
    there, here = _encoder_keys(pretrained.config), _encoder_keys(config)
    for key, value in here.items():
        if there[key] != value:
            raise BadInput(
                f"{pretrained.source}: model.{key} is {there[key]} there and {value} in this recipe; set it, or "
                "give other weights"
            )
    positions = {"pos_embed": sincos_positions(config.grid_size, config.width)}
    require_fixed_positions(pretrained.encoder, positions, pretrained.source)
    lacking = _lacking(pretrained, config)
    if pretrained.full is not None and lacking is None:
        return InitialWeights(pretrained.full, Origin(pretrained.source, None))
    encoder = {name: tensor for name, tensor in pretrained.encoder.items() if name.startswith(ENCODER_PARTS)}
    norm = {f"{last_norm(config)}.{part}": pretrained.encoder[f"norm.{part}"] for part in ("weight", "bias")}
    return InitialWeights(encoder | norm, Origin(pretrained.source, lacking))


def _lacking(pretrained: Pretrained, config: ModelConfig) -> str | None:
    if pretrained.full is None:
        return "which the source has none of"
    there, here = _decoder_keys(pretrained.config), _decoder_keys(config)
    different = [f"model.{key} is {there[key]} there and {here[key]} here" for key in here if there[key] != here[key]]
    return f"since {' and '.join(different)}" if different else None


def _encoder_keys(config: ModelConfig) -> dict[str, Any]:
    """Recipe keys that decide about the encoder, null ones resolved."""
    return {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.num_blocks,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
    }


def _decoder_keys(config: ModelConfig) -> dict[str, Any]:
    """All others that say what a weight means."""
    resolved = config.model_dump() | {"stages": config.stage_blocks, "scales": config.stage_scales}
    return {
        key: value
        for key, value in resolved.items()
        if key not in _encoder_keys(config).keys() | _OF_NO_WEIGHT | {"size"}
    }


def _digest(weights: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data.cast("B"))
    return digest.hexdigest()
