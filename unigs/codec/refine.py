"""Clusters -> entities: what the palette knows and plain clustering does not.

In: clusters of :mod:`unigs.codec.dichotomy` and the colormap. Out: one group per entity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unigs.codec.palette import legal_colours


def nearest_legal(rgb: Tensor) -> Tensor:
    """Number of the nearest legal colour of float [..., 3] in 0..255, black being 0; int64."""
    bounds = torch.tensor([32.0, 96.0, 160.0, 223.5], device=rgb.device, dtype=rgb.dtype)
    level = torch.bucketize(rgb.contiguous(), bounds)
    return (level * level.new_tensor([25, 5, 1])).sum(-1)


def merge_by_palette(mean: Tensor, image: Tensor) -> Tensor:
    """Give clusters of one image that are nearest to one legal colour the same number; int64 [K]."""
    return (image * len(legal_colours()) + nearest_legal(mean)).unique(return_inverse=True)[1]
