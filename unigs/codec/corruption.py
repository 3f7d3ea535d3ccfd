"""How noisy and how blurred a colormap is, read off the picture itself.

In: a colormap in eighths of a level. Out: :class:`Corruption`, by which :mod:`unigs.codec.refine`
chooses how to look for cores (paper, Section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unigs.codec.colours import sum_by
from unigs.codec.palette import legal_colours, nearest_legal

UNIT = 8
"""Smoothed colours are whole eighths of a level: products of two differences stay exact."""
PASSAGE = 12.0
"""Levels per two pixels from which on a colour is passed through: half the slope of two legal
neighbours (64 apart) under a blur of 3 px, twice what noise of sigma 12 leaves after smoothing."""
STEEP = 0.03
"""The same in a fine picture, squared, as a part of its borders' mean squared step of one pixel:
below half the slope of two legal neighbours where borders are mostly of twice their distance."""
FINE = 16.0
"""How many variances of the noise fit below that threshold in a fine picture."""
QUIET, SHARP, CLEAN = 6.0, 0.5, 9.0
"""Noise sigma; ratio of steps beside a jump to the jump; squared distance from legal colours."""


@dataclass(frozen=True, slots=True, eq=False)
class Corruption:
    """What a picture's own noise and borders say, per image.

    Attributes:
        fine: bool [B], noise is small against the slopes of borders. quiet: bool [B], little noise.
        sharp: bool [B], not blurred. clean: bool [B], nothing but legal colours.
        steep: float64 [B], product of two steps of one pixel, in 1 / UNIT levels, from which on a
            fine picture's colour is passed through.
    """

    fine: Tensor
    quiet: Tensor
    sharp: Tensor
    clean: Tensor
    steep: Tensor


def measure_corruption(raw: Tensor) -> Corruption:
    """Read noise, blur and legality off a picture, float [B, 3, H, W] in 1 / UNIT levels."""
    across, down = (sum_channels(raw.diff(dim=axis)) for axis in (3, 2))
    # The median of a step's square, 2.37 for three channels of variance 2 each: plateaus outnumber
    # borders.
    noise = _median(across[:, ::4].flatten(1)) / 4.73
    code = nearest_legal(raw, UNIT)
    jumps = _measure_jumps(raw, code, across, noise, 3) + _measure_jumps(raw, code, down, noise, 2)
    at, beside, illegal, count = jumps
    clean = illegal <= CLEAN * UNIT**2 * count
    quiet = noise < (QUIET * UNIT) ** 2
    steep = (STEEP * at / count.clamp(min=1)).clamp(min=(PASSAGE / 2 * UNIT) ** 2)
    fine = noise * FINE < steep
    sharp = clean | (quiet & (beside < SHARP * at))
    return Corruption(fine, quiet, sharp, clean, steep)


def _measure_jumps(raw: Tensor, code: Tensor, step: Tensor, noise: Tensor, axis: int) -> Tensor:
    """What is found where the nearest legal colour changes along an axis of the picture.

    Args:
        raw: float [B, 3, H, W]. code: int64 [B, H, W], its nearest legal colours.
        step: float, squared steps of one pixel along ``axis`` of ``raw``, 2 or 3.
        noise: float [B], the variance.

    Returns:
        float64 [4, B], sums over jumps: the squared step; those before and after it, all less the
        noise's part; the squared distance from the legal colour; one.
    """
    b, size = len(raw), step.shape[axis - 1]
    here, there = code.narrow(axis - 1, 0, size), code.narrow(axis - 1, 1, size)
    image, y, x = (here != there).nonzero(as_tuple=True)
    at = step[image, y, x] - 6 * noise[image]
    beside = torch.zeros_like(at)
    place = x if axis == 3 else y
    for shift in (-1, 1):
        other = (place + shift).clamp(0, size - 1)
        value = step[image, y, other] if axis == 3 else step[image, other, x]
        beside += torch.where(other != place, value - 6 * noise[image], 0)
    legal = legal_colours(raw.device).float() * UNIT
    off = (raw[image, :, y, x] - legal[code[image, y, x]]).square().sum(1)
    values = (at, beside, off, torch.ones_like(at))
    return torch.stack([sum_by(image, b, value.round().double()) for value in values])


def _median(values: Tensor) -> Tensor:
    """The lower median of each row, 0 for empty rows."""
    return values.median(1).values if values.shape[1] else values.new_zeros(len(values))


def sum_channels(difference: Tensor) -> Tensor:
    """Squared length over the channels of float [B, 3, ...]: whole numbers, exact in float32."""
    first, second, third = difference.unbind(1)
    return (first * first).addcmul_(second, second).addcmul_(third, third)
