"""How much the cells of a grid weigh in a loss: what is known of them, and small entities more."""

from __future__ import annotations

import torch
from torch import nn


def known_share(ignored: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Part of each latent cell whose colormap is known: bool [B, H, W] -> float [B, 1, h, w]."""
    return 1 - nn.functional.adaptive_avg_pool2d(ignored[:, None].float(), size)


def balance_sizes(
    labels: torch.Tensor,
    size: tuple[int, int],
    power: float,
    coarse_mask: torch.Tensor | None = None,
    largest: int | None = None,
) -> torch.Tensor:
    """Weights of the latent cells that favour small entities.

    A pixel weighs as its region's part of the picture to the power of -``power``. At 0 all pixels
    count alike, so a region counts by its area; at 1 all regions of a picture count alike, as
    entities do in mIoU and AP. Each entity is a region, what is left of the coarse mask is one, and
    so is the rest. Without the coarse mask's, a wrong mask would weigh little in a sample whose
    answer is empty and much in one where it is right, so the network would paint when in doubt.

    Args:
        labels: int [B, H, W]; 0 is not painted.
        size: h, w of the latent grid.
        power: 0 or more.
        coarse_mask: bool [B, 1, H, W], True is to be filled or searched; None: everywhere.
        largest: the largest label; None: it is looked up, which waits for the device.

    Returns:
        float [B, 1, h, w] of mean 1 in each picture.
    """
    flat = labels.flatten(1).long() + 1
    if coarse_mask is not None:
        flat = flat * (coarse_mask.flatten(1) | (flat > 1))
    count = 2 + largest if largest is not None else int(flat.max()) + 1
    area_px = flat.new_zeros(len(flat), count)
    area_px.scatter_add_(1, flat, torch.ones_like(flat))
    weight = area_px.gather(1, flat).view(labels.shape).float() ** -power
    pooled = nn.functional.adaptive_avg_pool2d(weight[:, None], size)
    return pooled / pooled.mean((1, 2, 3), keepdim=True)
