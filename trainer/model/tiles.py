"""Convolutions whose kernel is as large as their stride, computed as the matrix products that they are.

Such a kernel meets every tile of the image once, so nothing slides: a layer over tiles cut beforehand, one row of
channels each, gives the same numbers. Tokens then keep their channels together from end to end, where a convolution
would have them transposed before and after; and tiles that nobody looks at need not be computed.

The classes derive from torch's, whose parameters and initialisation they keep.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class TileConv2d(nn.Conv2d):
    """`nn.Conv2d` with stride = kernel_size on tiles that are cut already."""

    def forward(self, input: Tensor) -> Tensor:
        """Tiles [..., in·k·k], each by channel, row, column → [..., out]."""
        return F.linear(input, self.weight.flatten(1), self.bias)


class TileConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with stride = kernel_size, whose output stays in tiles."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """[..., in] → [..., k·k, out]: the cells that each input becomes, row by row."""
        if output_size is not None:
            raise ValueError("the output is k times the input: output_size cannot be chosen")
        weight = self.weight.flatten(2).permute(2, 1, 0)  # [in, out, k, k] → [k·k, out, in]
        cells, channels, _ = weight.shape
        bias = None if self.bias is None else self.bias.repeat(cells)
        return F.linear(input, weight.flatten(0, 1), bias).unflatten(-1, (cells, channels))
