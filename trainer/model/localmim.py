"""LocalMIM: a masked ViT encoder whose intermediate blocks each reconstruct local features (arXiv 2303.05251).

The encoder's parameters carry timm's VisionTransformer names. Freezing is by *unit*: unit 0 is the patch embedding with
the class token, unit i is block i-1 (from 0) with the stage that reads it. Because the class token stands at the
input, leaving it trainable would keep every frozen block in the autograd graph; so it freezes with unit 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from trainer.model.block import transformer_block
from trainer.model.config import ModelConfig
from trainer.model.decoder import Stage
from trainer.model.exact_buffers import ExactBuffers
from trainer.model.hog import hog_targets
from trainer.model.masking import Masking, mask_at_scale, random_masking
from trainer.model.patch_embed import PatchEmbed
from trainer.model.pixel_targets import pixel_targets
from trainer.model.positions import add_positions, sincos_positions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class StageReconstruction:
    """One live stage's target and prediction, float32 [B, cells, values of a cell], cells row by row."""

    stage: int
    target: Tensor
    prediction: Tensor


@dataclass(frozen=True)
class Reconstruction:
    """What the model saw and predicted. ``mask``: float32 [B, L], 1 = masked; ``stages``: the live ones."""

    mask: Tensor
    stages: list[StageReconstruction]


class LocalMIM(ExactBuffers):
    """Encoder and stages. ``forward`` returns the pre-training loss; ``freeze_prefix`` cuts units off from the input.

    The module may be cast to bf16 or fp16 as a whole: pixels, targets and losses stay fp32, activations follow the
    weights. Nothing in ``forward`` waits for the device, and every parameter is used inside the forward of the module
    that owns it, as ZeRO-3's gathering requires.
    """

    mean: Tensor
    std: Tensor
    pos_embed: Tensor

    def __init__(self, config: ModelConfig, *, checkpoint_activations: bool = False) -> None:
        """``checkpoint_activations``: keep each live block's input only and run it again in the backward pass."""
        super().__init__()
        self.config = config
        self.checkpoint_activations = checkpoint_activations
        self.depth = config.num_blocks
        self.num_units = config.num_units
        self.num_patches = config.num_patches
        self.frozen_units = 0
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.register_buffer("pos_embed", sincos_positions(config.grid_size, config.width), persistent=False)

        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width).normal_(std=0.02))
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(
            transformer_block(config.width, config.heads, config.mlp_ratio, config.norm_eps) for _ in range(self.depth)
        )
        self.stages = nn.ModuleList(Stage(config, scale) for scale in config.stage_scales)
        self._stage_of_block = {block: stage for stage, block in enumerate(config.stage_blocks)}
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Xavier-uniform linear layers and patch projection, zero biases (MAE, arXiv 2111.06377).

        The decoders' convolutions and all LayerNorms keep torch's defaults; tokens are drawn from N(0, 0.02) where
        they are declared."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))  # a view: fills the kernel as one matrix
        nn.init.zeros_(self.patch_embed.get_parameter("proj.bias"))

    @property
    def live_stages(self) -> list[int]:
        """Indices of the stages whose block is not frozen: only these are decoded and targeted."""
        return [
            stage for stage, block in enumerate(self.config.stage_blocks) if _unit_of_block(block) >= self.frozen_units
        ]

    def unit_of(self, parameter_name: str) -> int:
        """The freezable unit that owns a parameter, named as in ``named_parameters()``."""
        part, _, rest = parameter_name.partition(".")
        if part in ("cls_token", "patch_embed"):
            return 0
        index = rest.partition(".")[0]
        if part == "blocks":
            return _unit_of_block(int(index))
        if part == "stages":
            return _unit_of_block(self.config.stage_blocks[int(index)])
        raise KeyError(f"{parameter_name} is not a parameter of LocalMIM")

    def freeze_prefix(self, units: int) -> None:
        """Freeze units 0 … units-1: no gradient, no autograd graph, and no work for the stages that go with them.

        Their weights stay in the module. A prefix only grows, and the last unit never freezes, since it carries the
        only loss that is left.

        Raises ValueError if ``units`` would shrink the prefix or freeze everything."""
        if not self.frozen_units <= units < self.num_units:
            raise ValueError(
                f"cannot freeze {units} units: {self.frozen_units} of {self.num_units} are frozen, "
                "a prefix never shrinks and the last unit never freezes"
            )
        self.frozen_units = units
        for name, parameter in self.named_parameters():
            if self.unit_of(name) < units:
                parameter.requires_grad_(False)

    def forward(
        self, images: Tensor, noise: Tensor, stage_weights: Sequence[float] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pre-training loss of a micro-batch.

        Args:
            images: uint8 [B, 3, H, W].
            noise: float32 [B, L]; the patches of smallest noise are kept (``masking.mask_noise``).
            stage_weights: of all stages, live or not (``ModelConfig.stage_weights_at``); None = 1 each.

        Returns: the loss, float32 scalar, the weighted sum over the live stages; and each live stage's own loss,
        float32 [stages], detached, not weighted. A stage's loss is its squared error averaged over the values of a cell
        and over masked cells.
        """
        shown = self._reconstruct(images, noise)
        losses = [self._stage_loss(stage, shown.mask) for stage in shown.stages]
        unweighted = torch.stack(losses)
        if stage_weights is None:
            return unweighted.sum(), unweighted.detach()
        # plain numbers: a tensor of them would be copied to the device, and waited for
        weighted = [loss * stage_weights[stage.stage] for loss, stage in zip(losses, shown.stages, strict=True)]
        return torch.stack(weighted).sum(), unweighted.detach()

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor) -> Reconstruction:
        """Targets and predictions of the live stages, to look at. Arguments as ``forward``."""
        return self._reconstruct(images, noise)

    def embed(self, images: Tensor, noise: Tensor) -> Tensor:
        """What the first block gets: class token and kept patches [B, 1 + K, D]. Arguments as ``forward``."""
        return self._embed(self._normalised(images), random_masking(noise, self.config.num_kept))

    def _normalised(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8 (0…255), not {images.dtype}")
        return (images.float() / 255 - self.mean) / self.std

    def _reconstruct(self, images: Tensor, noise: Tensor) -> Reconstruction:
        pixels = self._normalised(images)
        masking = random_masking(noise, self.config.num_kept)
        live = self.live_stages
        targets = self._targets(pixels, [self.config.hog_windows[stage] for stage in live])
        predictions = self._predict(pixels, masking)
        stages = [
            StageReconstruction(stage, target, prediction.float())
            for stage, target, prediction in zip(live, targets, predictions, strict=True)
        ]
        return Reconstruction(mask=masking.mask, stages=stages)

    def _targets(self, pixels: Tensor, windows: list[int]) -> list[Tensor]:
        """Normalised pixels → for each window [B, cells, values of a cell]."""
        if self.config.target == "pixels":
            with record_function("pixel targets"):
                return pixel_targets(pixels, windows, self.config.cell_pixels)
        with record_function("HOG targets"):  # a name to look for in profiles
            return hog_targets(pixels, windows, self.config.hog_bins)

    def _predict(self, pixels: Tensor, masking: Masking) -> list[Tensor]:
        """Run the encoder and decode the live stages on the way: one [B, cells, values of a cell] for each."""
        predictions = []
        with self._graph_of_unit(0):
            tokens = self._embed(pixels, masking)
        for index, block in enumerate(self.blocks):
            with self._graph_of_unit(_unit_of_block(index)), record_function(f"block {index}"):
                tokens = self._run_block(block, tokens)
            stage = self._stage_of_block.get(index)
            if stage is not None and _unit_of_block(index) >= self.frozen_units:
                with record_function(f"stage {stage}"):
                    predictions.append(self.stages[stage](tokens, masking))
        return predictions

    def _run_block(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """[B, 1 + K, D] → the same. A block that records no graph has nothing to keep, and runs once either way."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            # No dropout: there is no random state to put back, and the second run gives the same bits.
            return checkpoint(block, tokens, use_reentrant=False, preserve_rng_state=False)
        return block(tokens)

    def _graph_of_unit(self, unit: int) -> torch.set_grad_enabled:
        """A context that records no graph for a frozen unit, and changes nothing for a live one."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and unit >= self.frozen_units)

    def _embed(self, pixels: Tensor, masking: Masking) -> Tensor:
        """Normalised pixels → class token and kept patches with their positions, [B, 1 + K, D]."""
        patches = self.patch_embed(pixels, masking.kept)
        kept = add_positions(patches, self.pos_embed[0, 1:][masking.kept])
        cls_token = add_positions(self.cls_token, self.pos_embed[:, :1]).expand(len(kept), -1, -1)
        return torch.cat([cls_token, kept], dim=1)

    def _stage_loss(self, shown: StageReconstruction, mask: Tensor) -> Tensor:
        weight = mask_at_scale(mask, self.config.stage_scales[shown.stage])
        error = (shown.prediction - shown.target).square().mean(dim=2)
        return (error * weight).sum() / weight.sum()


def _unit_of_block(block: int) -> int:
    return block + 1
