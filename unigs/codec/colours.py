"""Colormap -> its distinct colours with counts, and what is computed on them (paper, Eq. 5).

In: a uint8 colormap. Out: :class:`Colours` and their features, for :mod:`unigs.codec.dichotomy`.
Features are snapped to a grid of 2**-12, as fine as float32's error in Lab: sums in float64 are
then exact, so that no order of summation, batch or device changes a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from kornia.color import rgb_to_lab
from torch import Tensor

Features = Literal["rgb+lab", "rgb", "lab"]


@dataclass(frozen=True, slots=True, eq=False)
class Colours:
    """The distinct colours of a batch, sorted by image and by cube of 8 x 8 x 8 colours.

    Attributes:
        rgb: uint8 [U, 3]. image: int64 [U], the image it is found in. count: float64 [U] pixels.
        cube: int64 [U], number of its cube, without gaps, ascending.
        pixel: int64 [B, H, W], the place in this list of each pixel's colour.
    """

    rgb: Tensor
    image: Tensor
    count: Tensor
    cube: Tensor
    pixel: Tensor


def collect_colours(colormap: Tensor) -> Colours:
    """List the distinct colours of each image of uint8 [B, 3, H, W] with their counts."""
    b, _, h, w = colormap.shape
    r, g, b_ = colormap.int().unbind(1)
    cube = ((r >> 3) << 10) | ((g >> 3) << 5) | (b_ >> 3)
    code = (cube << 9) | ((r & 7) << 6) | ((g & 7) << 3) | (b_ & 7)
    code = code.long() | (torch.arange(b, device=colormap.device)[:, None, None] << 24)
    code, pixel, count = code.view(-1).unique(return_inverse=True, return_counts=True)
    channels = [
        (code >> high & 31) << 3 | (code >> low & 7) for high, low in ((19, 6), (14, 3), (9, 0))
    ]
    cube = (code >> 9).unique_consecutive(return_inverse=True)[1]
    rgb = torch.stack(channels, 1).to(torch.uint8)
    return Colours(rgb, code >> 24, count.double(), cube, pixel.view(b, h, w))


def colour_features(rgb: Tensor, features: Features = "rgb+lab") -> Tensor:
    """Eq. 5: RGB (0..255) and CIE Lab of uint8 [U, 3], float64 [3 or 6, U] on the exact grid."""
    with torch.autocast(rgb.device.type, enabled=False):
        lab = rgb_to_lab(rgb.t().float()[:, None] / 255)[:, 0]  # [3, U]
    parts = {"rgb": [rgb.t()], "lab": [lab], "rgb+lab": [rgb.t(), lab]}[features]
    return snap(torch.cat([part.double() for part in parts]))


def snap(values: Tensor) -> Tensor:
    """Round float64 to multiples of 2**-12."""
    return values.mul(2.0**12).round_().mul_(2.0**-12)


def sum_by(group: Tensor, groups: int, values: Tensor) -> Tensor:
    """Sum float64 [..., n] by group, [..., groups]; exact, so deterministic, if snapped."""
    out = values.new_zeros(*values.shape[:-1], groups)
    return out.scatter_add_(-1, group.expand(values.shape), values)
