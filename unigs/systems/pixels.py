"""Pixels on their way into a network and back: the signed range, sizes that it can run at, NaN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from unigs.records import UnigsError


def to_signed(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return pixels.float() / 127.5 - 1


def to_uint8(signed: torch.Tensor) -> torch.Tensor:
    """float -1..1 (clamped) -> uint8 0..255, rounded; the inverse of :func:`to_signed`."""
    return ((signed.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def check_finite(values: torch.Tensor, what: str, origin: str) -> torch.Tensor:
    """What a network gave, before it is read as pixels, bits or classes.

    Args:
        values: float, of any shape.
        what: they are, in the plural.
        origin: the network.

    Returns:
        The same.

    Raises:
        UnigsError: NaN or infinity among them.
    """
    if not values.isfinite().all():
        raise UnigsError(
            f"expected finite {what}, got NaN or infinity, from {origin}; half precision may make "
            "such, and guidance that is too strong"
        )
    return values


def fit_size(height: int, width: int, resolution_px: int | None, multiple: int) -> tuple[int, int]:
    """Model size of a picture: short side near ``resolution_px``, aspect kept, both multiples."""
    scale = (resolution_px or min(height, width)) / min(height, width) / multiple
    rows, cols = (max(1, round(side * scale)) * multiple for side in (height, width))
    return rows, cols


def resize_pixels(pixels: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """uint8 [B, 3, H, W] to another size, antialiased bicubic; the same tensor if it fits."""
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    out = nn.functional.interpolate(
        pixels.float(), size=tuple(size), mode="bicubic", antialias=True, align_corners=False
    )
    return out.round().clamp(0, 255).to(torch.uint8)


def resize_labels(labels: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Labels or masks [B, H, W] to another size, nearest; the dtype stays."""
    rows, cols = (
        ((torch.arange(new, device=labels.device) + 0.5) * old / new).long()
        for new, old in zip(size, labels.shape[-2:])
    )
    return labels[:, rows[:, None], cols]
