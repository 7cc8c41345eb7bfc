"""The patch embedding, for the patches that the encoder sees."""

from torch import Tensor, nn

from trainer.model.config import ModelConfig
from trainer.model.masking import flat_rows
from trainer.model.tiles import TileConv2d


class PatchEmbed(nn.Module):
    """Linear projection of image patches (arXiv 2010.11929 §3.1), under the parameter names of timm's module.

    Masked patches are left out before the projection rather than after it, which saves their share of its work.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.grid_size, self.patch_size = config.grid_size, config.patch_size
        self.proj = TileConv2d(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor, kept: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] and indices of patches int64 [B, K] → their tokens [B, K, D], in the weights' dtype."""
        cut = (self.grid_size, self.patch_size)
        tiles = pixels.unflatten(3, cut).unflatten(2, cut).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)
        chosen = tiles.index_select(0, flat_rows(kept, self.grid_size**2)).to(self.proj.weight.dtype)
        return self.proj(chosen.unflatten(0, kept.shape))
