"""How noisy and how blurred a colormap is, read off the picture itself.

In: a colormap in eighths of a level. Out: :class:`Sharpness`, by which :mod:`unigs.codec.refine`
chooses how to look for cores (paper, Section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unigs.codec.colours import sum_by
from unigs.codec.palette import legal_colours

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
class Sharpness:
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


def nearest_legal(colour: Tensor, unit: float = 1) -> Tensor:
    """Number of the nearest legal colour of float [B, 3, ...], 1 / unit levels; int64 [B, ...]."""
    level = ((colour + 32 * unit) / (64 * unit)).floor().long()
    return level[:, 0] * 25 + level[:, 1] * 5 + level[:, 2]


def measure_sharpness(raw: Tensor) -> Sharpness:
    """Read noise, blur and legality off a picture, float [B, 3, H, W] in 1 / UNIT levels."""
    b = len(raw)
    code = nearest_legal(raw, UNIT)
    legal = legal_colours(raw.device).float() * UNIT
    jumps = raw.new_zeros(3, b, dtype=torch.double)  # at, beside jumps; illegality
    noise = None
    count = raw.new_zeros(b, dtype=torch.double)
    for axis in (3, 2):
        size = raw.shape[axis] - 1
        step = sum_channels(raw.narrow(axis, 1, size) - raw.narrow(axis, 0, size))
        here, there = code.narrow(axis - 1, 0, size), code.narrow(axis - 1, 1, size)
        image, y, x = (here != there).nonzero(as_tuple=True)
        if noise is None:
            # The median of a step's square, 2.37 for three channels of variance 2 each: plateaus
            # outnumber borders.
            noise = _median(step[:, ::4].flatten(1)) / 4.73
        at = step[image, y, x] - 6 * noise[image]
        last = step.shape[axis - 1] - 1
        place = x if axis == 3 else y
        beside = torch.zeros_like(at)
        for shift in (-1, 1):
            other = (place + shift).clamp(0, last)
            value = step[image, y, other] if axis == 3 else step[image, other, x]
            beside += torch.where(other != place, value - 6 * noise[image], 0)
        pixel = raw[image, :, y, x]
        off = (pixel - legal[code[image, y, x]]).square().sum(1)
        jumps += torch.stack([sum_by(image, b, v.round().double()) for v in (at, beside, off)])
        count += sum_by(image, b, torch.ones_like(at, dtype=torch.double))
    assert noise is not None
    clean = jumps[2] <= CLEAN * UNIT**2 * count
    quiet = noise < (QUIET * UNIT) ** 2
    steep = (STEEP * jumps[0] / count.clamp(min=1)).clamp(min=(PASSAGE / 2 * UNIT) ** 2)
    fine = noise * FINE < steep
    sharp = clean | (quiet & (jumps[1] < SHARP * jumps[0]))
    return Sharpness(fine, quiet, sharp, clean, steep)


def _median(values: Tensor) -> Tensor:
    """The lower median of each row, 0 for empty rows."""
    return values.median(1).values if values.shape[1] else values.new_zeros(len(values))


def sum_channels(difference: Tensor) -> Tensor:
    """Squared length over the channels of float [B, 3, ...]: whole numbers, exact in float32."""
    first, second, third = difference.unbind(1)
    return (first * first).addcmul_(second, second).addcmul_(third, third)
