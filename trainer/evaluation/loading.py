"""Pre-trained weights on every rank, read by one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from trainer.evaluation.encoder import Encoder, Precision
from trainer.pretrained import Pretrained, build_vit, load_into, load_pretrained
from trainer.ranks import from_rank_zero


@dataclass(frozen=True)
class LoadedEncoder:
    """``source``: for people; ``step``: of the checkpoint, None for other files."""

    encoder: Encoder
    source: str
    step: int | None


def load_encoder(init: Path, device: torch.device, precision: Precision, say: Callable[[str], None]) -> LoadedEncoder:
    """What `load_pretrained` takes, as a frozen encoder. Collective; rank 0 alone reads.

    Raises BadInput on every rank."""
    read: list[Pretrained] = []

    def on_rank_zero():
        pretrained = load_pretrained(init, say=say)
        vit = build_vit(pretrained.config, num_classes=0)
        load_into(vit, pretrained)  # here, so that what does not fit is refused on every rank
        read.append(pretrained)
        return (
            pretrained.config,
            pretrained.source,
            int(pretrained.about["step"]) if "step" in pretrained.about else None,
        )

    config, source, step = from_rank_zero(on_rank_zero)
    vit = build_vit(config, num_classes=0)
    if read:
        load_into(vit, read[0])
    encoder = Encoder(vit, device, precision)
    for tensor in (*encoder.vit.parameters(), *encoder.vit.buffers()):
        dist.broadcast(tensor, src=0)
    return LoadedEncoder(encoder, source, step)
