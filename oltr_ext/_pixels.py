"""What those who make pixels and those who take them must agree on."""

from __future__ import annotations

from typing import Literal

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Interpolation"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Interpolation = Literal["bilinear", "bicubic"]
"""Of images that are cropped; those that are taken whole are averaged, or enlarged bicubically."""
