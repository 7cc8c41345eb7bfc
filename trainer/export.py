"""Weights under other projects' names: import of the checkpoints that LocalMIM released (arXiv 2303.05251)."""

import re
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from trainer.errors import BadInput
from trainer.model.decoder import Stage
from trainer.model.localmim import LocalMIM

# Their positions were computed in other precisions than ours; a wrong layout or grid is off by 0.1 and more.
_POSITION_TOLERANCE = 1e-5


@torch.no_grad()
def load_localmim_state_dict(model: LocalMIM, state_dict: Mapping[str, Tensor]) -> None:
    """Copy the weights of a LocalMIM checkpoint, published names, into ``model``.

    The positions are not weights here: they are checked against the model's own. The Sobel kernels (``hog_enc.*``) are
    ignored. Nothing is copied unless everything fits.

    Raises BadInput, naming the keys, on a missing or unexpected weight, a wrong shape or other positions.
    """
    weights = {_localmim_name(name, model): tensor for name, tensor in model.state_dict().items()}
    positions = _positions(model)
    given = {name for name in state_dict if not name.startswith("hog_enc.")}
    _refuse("the checkpoint lacks", weights.keys() - given)
    _refuse("the checkpoint holds weights that the model has no place for:", given - weights.keys() - positions.keys())
    _refuse(
        "the checkpoint's shapes do not fit the model's configuration:",
        {
            f"{name} {tuple(state_dict[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in (weights | positions).items()
            if name in given and state_dict[name].shape != tensor.shape
        },
    )
    _refuse(
        "the checkpoint was trained with other positions than fixed sin-cos:",
        {name for name in given & positions.keys() if not _same_positions(state_dict[name], positions[name])},
    )
    for name, tensor in weights.items():
        tensor.copy_(state_dict[name])


def _localmim_name(name: str, model: LocalMIM) -> str:
    """The published name of one of our weights: norms and decoders are listed apart, and so is a decoder's head."""
    match = re.fullmatch(r"stages\.(\d+)\.(norm|decoder)\.(.+)", name)
    if match is None:
        return name
    stage, part, rest = match.groups()
    last_of_head = len(cast(Stage, model.stages[int(stage)]).decoder.resize)
    rest = rest.replace("resize.", "pred.").replace("predict.", f"pred.{last_of_head}.")
    return f"{part}.{stage}.{rest}"


def _positions(model: LocalMIM) -> dict[str, Tensor]:
    decoders = {
        f"decoder.{stage}.pos_embed": model.get_buffer(f"stages.{stage}.decoder.pos_embed")
        for stage in range(len(model.stages))
    }
    return {"pos_embed": model.pos_embed, **decoders}


def _same_positions(given: Tensor, ours: Tensor) -> bool:
    return torch.allclose(given.to(ours), ours, rtol=0, atol=_POSITION_TOLERANCE)


def _refuse(problem: str, keys: set[str]) -> None:
    if keys:
        shown = sorted(keys)[:8]
        more = f" and {len(keys) - len(shown)} more" if len(keys) > len(shown) else ""
        raise BadInput(f"{problem} {', '.join(shown)}{more}")
