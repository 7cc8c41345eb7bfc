"""The names under which LocalMIM (arXiv 2303.05251) published its checkpoints, from and to ours.

The encoder's are the same. Norms and decoders are listed apart there, ``norm.2.weight`` and ``decoder.2.…``, the
head of a decoder is one list, ``pred``, and the fixed positions are among the weights.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.model.config import ModelConfig
from trainer.model.positions import sincos_positions
from trainer.pretrained.weights import parameter_shapes, refuse, require_weights

PUBLISHED = re.compile(r"(?:norm|decoder)\.(\d{1,4})\..+")
"""What only these checkpoints have; group 1 is the stage."""

HEAD_LAYERS = {4.0: (0, 1, 3, 4), 2.0: (0, 1), 1.0: (0,), 0.5: (1,)}
"""Scale of a stage → which entries of its decoder's ``pred`` have weights. The last of them is our ``predict``."""

# Their positions were computed in other precisions than ours; a wrong layout or grid is off by 0.1 and more.
POSITION_TOLERANCE = 1e-5

_SOBEL = "hog_enc."  # kernels of the targets, constants here


def published_names(config: ModelConfig) -> dict[str, str]:
    """Our name of each parameter → the published one."""
    return {name: _published_name(name, config) for name in parameter_shapes(config)}


def from_published(config: ModelConfig, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights under our names. The positions are not weights here: they are checked against ours and left out.

    Raises `BadInput`, naming the keys, on a missing or unexpected weight, a wrong shape or other positions."""
    given = {name: tensor for name, tensor in weights.items() if not name.startswith(_SOBEL)}
    names, positions = published_names(config), published_positions(config)
    expected = {names[name]: shape for name, shape in parameter_shapes(config).items()}
    expected |= {name: tensor.shape for name, tensor in positions.items() if name in given}
    require_weights(given, expected, source)
    require_fixed_positions(given, positions, source)
    return {ours: given[published] for ours, published in names.items()}


def to_published(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All parameters of a `LocalMIM` under the published names, with the positions that are among them there."""
    return published_positions(config) | {
        published: weights[ours] for ours, published in published_names(config).items()
    }


def published_positions(config: ModelConfig) -> dict[str, Tensor]:
    """The fixed positions of encoder and decoders."""
    decoder = sincos_positions(config.grid_size, config.decoder_dim)
    stages = range(len(config.stage_blocks))
    return {
        "pos_embed": sincos_positions(config.grid_size, config.width),
        **{f"decoder.{stage}.pos_embed": decoder for stage in stages},
    }


def require_fixed_positions(given: Mapping[str, Tensor], fixed: Mapping[str, Tensor], source: str) -> None:
    """Raises `BadInput` if one of the given positions, of the right shape, has other values than the fixed ones."""
    refuse(
        source,
        "it was trained with other positions than fixed sin-cos:",
        {
            name
            for name, ours in fixed.items()
            if name in given and not torch.allclose(given[name], ours, rtol=0, atol=POSITION_TOLERANCE)
        },
    )


def _published_name(name: str, config: ModelConfig) -> str:
    found = re.fullmatch(r"stages\.(\d+)\.(norm|decoder)\.(.+)", name)
    if found is None:
        return name
    stage, part, rest = found.groups()
    last = HEAD_LAYERS[config.stage_scales[int(stage)]][-1]
    rest = rest.replace("resize.", "pred.").replace("predict.", f"pred.{last}.")
    return f"{part}.{stage}.{rest}"
