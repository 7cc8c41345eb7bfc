"""Pre-trained weights as one file for others."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from trainer.checkpoint.state_file import write_fp32
from trainer.errors import BadInput
from trainer.files import replace_file
from trainer.pretrained.localmim_names import to_published
from trainer.pretrained.timm_model import timm_metadata
from trainer.pretrained.weights import Pretrained


def write_timm(pretrained: Pretrained, output: Path) -> int:
    """The encoder for timm's VisionTransformer, norm included, without a head; returns the bytes written.

    Raises `BadInput` if `output` cannot be written, or if timm has no such model."""
    try:
        return write_encoder(pretrained, output)
    except OSError as error:
        raise cannot_write(output, error) from None


def write_full(pretrained: Pretrained, output: Path) -> int:
    """Encoder, norms and decoders under the names that LocalMIM published; returns the bytes written.

    Raises `BadInput` if `output` cannot be written, or if the source has no decoders."""
    if pretrained.full is None:
        raise BadInput(f"{pretrained.source}: has no decoders, and so no full model; take --format timm")
    try:
        return _write(to_published(pretrained.config, pretrained.full), pretrained.about, output)
    except OSError as error:
        raise cannot_write(output, error) from None


def write_encoder(pretrained: Pretrained, output: Path) -> int:
    """The file of `write_timm`. Its metadata say which model of timm it is and how images are normalised, and what
    `Pretrained.about` says. Raises OSError, and `BadInput` if timm has no such model."""
    about = timm_metadata(pretrained.config, pretrained.source) | dict(pretrained.about)
    return _write(pretrained.encoder, about, output)


def cannot_write(output: Path, error: OSError) -> BadInput:
    return BadInput(f"--output {output}: cannot be written ({error.strerror}); choose another, or mend that")


def _write(weights: Mapping[str, Tensor], about: Mapping[str, str], output: Path) -> int:
    shapes = {name: list(tensor.shape) for name, tensor in weights.items()}
    tensors = (tensor.contiguous() for tensor in weights.values())
    with replace_file(output) as stream:
        size, _ = write_fp32(stream, shapes, tensors, {"format": "pt", **about})
    return size
