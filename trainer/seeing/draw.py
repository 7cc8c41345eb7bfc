"""All pictures of a pre-trained model and a few photographs, one after another, into a folder."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from trainer.model.config import ModelConfig
from trainer.model.localmim import IMAGENET_MEAN, IMAGENET_STD, LocalMIM
from trainer.model.masking import mask_noise
from trainer.pretrained import Pretrained, build_vit, load_into
from trainer.seeing import KINDS
from trainer.seeing.attention import class_attention
from trainer.seeing.features import patch_features, principal_components
from trainer.seeing.pictures import attention_figure, feature_figure
from trainer.tracking.pictures import draw_reconstructions, save_figure


def draw_pictures(
    pretrained: Pretrained,
    images: Tensor,
    folder: Path,
    *,
    kinds: Collection[str] = KINDS,
    mask_seed: int = 0,
    attention_blocks: Sequence[int] | None = None,
) -> Iterator[Path]:
    """Yields each picture's path once it is written: reconstructions.png, features.png, attention_block_12.png, …

    On the host, in fp32, and without a trace in torch's random state: a training may be under way.

    Args:
        images: uint8 [B, 3, H, W] of the size that the model was trained on.
        kinds: of `KINDS`; reconstructions need a source with decoders (``pretrained.full``).
        mask_seed: of the masks, one for each image.
        attention_blocks: from 0; None is the last one.
    """
    if "reconstructions" in kinds:
        yield _draw_reconstructions(pretrained, images, folder, mask_seed)
    if not {"features", "attention"} & set(kinds):
        return
    source, last = pretrained.source, pretrained.config.num_blocks - 1
    vit, pixels, photographs = _encoder(pretrained), _normalised(images), images.permute(0, 2, 3, 1).numpy()
    if "features" in kinds:
        components = principal_components(patch_features(vit, pixels))
        title = f"{source}\nprincipal components of the patch features, block {last + 1}"
        yield save_figure(feature_figure(photographs, components, title), folder / "features.png", dpi=110)
    if "attention" in kinds:
        blocks = [last] if attention_blocks is None else attention_blocks
        for block, maps in zip(blocks, class_attention(vit, pixels, blocks), strict=True):
            figure = attention_figure(photographs, maps, f"{source}\nthe class token's attention, block {block + 1}")
            yield save_figure(figure, folder / f"attention_block_{block + 1:02d}.png", dpi=110)


def frozen_stages(config: ModelConfig, frozen_units: int) -> set[int]:
    """Stages whose block, which is unit block + 1, is among the frozen units."""
    return {stage for stage, block in enumerate(config.stage_blocks) if block + 1 < frozen_units}


def mask_keys(count: int, seed: int) -> Tensor:
    """int64 [count]: keys of `mask_noise`, others for each image and each seed below 2³¹."""
    return torch.arange(count) + (seed << 32)


def _draw_reconstructions(pretrained: Pretrained, images: Tensor, folder: Path, mask_seed: int) -> Path:
    """Of all stages, frozen ones too, which are marked: a decoder froze with the block that it reads, so its
    predictions stay valid."""
    assert pretrained.full is not None, "the source has no decoders"
    config, path = pretrained.config, folder / "reconstructions.png"
    with torch.random.fork_rng(devices=[]):
        model = LocalMIM(config)
    model.load_state_dict(pretrained.full)
    shown = model.reconstruct(images, mask_noise(mask_keys(len(images), mask_seed), config.num_patches))
    frozen = frozen_stages(config, int(pretrained.about.get("frozen_units", 0)))
    draw_reconstructions(images.numpy(), shown, config, path, title=pretrained.source, frozen_stages=frozen)
    return path


def _encoder(pretrained: Pretrained) -> VisionTransformer:
    with torch.random.fork_rng(devices=[]):
        vit = build_vit(pretrained.config, num_classes=0).eval()
    load_into(vit, pretrained)
    return vit


def _normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.float() / 255 - mean) / std
