"""Modulated attention over the last feature map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ModulatedAttention(nn.Module):
    r"""Self-attention modulated by where to look, added to the feature map.

    .. math:: f + \mathrm{MA}(f) \odot \mathrm{SA}(f)

    SA is non-local attention over positions at half the channels, without the usual
    :math:`1/\sqrt d`; MA is a softmax over positions, shared by all channels. It starts as the
    identity. Source: OLTR (Liu et al., CVPR 2019, Sec. 3.1); parameter names are those of the
    released code.

    Args:
        in_channels: channels of the feature map, even.
        height: of the feature map, fixed: MA is a Linear over flattened positions.
        width: of the feature map.

    Raises:
        ValueError: an odd number of channels, or a map of another shape than declared.
    """

    def __init__(self, in_channels: int, height: int = 7, width: int = 7) -> None:
        super().__init__()
        if in_channels < 2 or in_channels % 2:
            raise ValueError(
                f"ModulatedAttention: expected an even number of channels, got {in_channels}"
            )
        self.shape = (in_channels, height, width)
        inner, positions = in_channels // 2, height * width
        self.g = nn.Conv2d(in_channels, inner, 1)
        self.theta = nn.Conv2d(in_channels, inner, 1)
        self.phi = nn.Conv2d(in_channels, inner, 1)
        self.conv_mask = nn.Conv2d(inner, in_channels, 1, bias=False)
        self.fc_spatial = nn.Linear(in_channels * positions, positions)
        for layer in (self.g, self.theta, self.phi):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.conv_mask.weight)

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps (B, Cin, H, W) to the same shape."""
        if tuple(maps.shape[1:]) != self.shape:
            raise ValueError(
                f"ModulatedAttention: expected maps of shape (B, {', '.join(map(str, self.shape))})"
                f", got {tuple(maps.shape)}"
            )
        _, height, width = self.shape
        query, key, value = (
            layer(maps).flatten(2).transpose(1, 2) for layer in (self.theta, self.phi, self.g)
        )
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        attended = attended.transpose(1, 2).unflatten(2, (height, width))
        where = torch.softmax(self.fc_spatial(maps.flatten(1)), dim=1)
        return maps + where.view(-1, 1, height, width) * self.conv_mask(attended)
