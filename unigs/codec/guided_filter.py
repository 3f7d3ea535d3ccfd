"""Outlines of the picture for a colormap that was generated for it.

In: a generated colormap and the picture that was given. Out: the colormap, each pixel averaged with
those around it that look like it in both: a bilateral filter (Tomasi and Manduchi 1998) over two
pictures. Not in the paper. A latent cell is several pixels wide and a generated outline strays by
about one; a picture of flat colours knows better where things end. On photographs colours cross
outlines, and it does harm (docs/codec.md), so it must be asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from unigs.records import UnigsError

RINGS = 8
"""Neighbours are looked at on a grid this far to each side."""

GRID = 1 / 32
"""Distance between neighbours, in sides of the picture."""

FADE = 1.125
"""The weight of a neighbour at the rim is exp(-FADE): 1.5 standard deviations."""

IMAGE_STD = 0.1 * 255
"""Standard deviation of like colours in the picture; sum of the channels' differences."""

COLORMAP_STD = 120.0
"""Standard deviation of like colours in the colormap; Euclidean. Two palette steps are 128."""

PASSES = 3


@torch.no_grad()
def filter_colormap(colormap: Tensor, image: Tensor) -> Tensor:
    """Average each pixel with those around it that have its colour in picture and colormap.

    The number of neighbours is the same at every size, so cost is linear in pixels.

    Args:
        colormap: uint8 [B, 3, H, W].
        image: uint8 [B, 3, H, W], the picture that the colormap is of.

    Returns:
        uint8 [B, 3, H, W]. A pixel like none of its neighbours keeps its colour.

    Raises:
        UnigsError: another shape or dtype.
    """
    for name, tensor in (("colormap", colormap), ("image", image)):
        if tensor.dtype != torch.uint8 or tensor.dim() != 4 or tensor.shape != colormap.shape:
            raise UnigsError(
                f"expected {name} uint8 {list(colormap.shape)}, got {tensor.dtype} "
                f"{list(tensor.shape)}, in filter_colormap"
            )
    height, width = colormap.shape[-2:]
    step = max(1, round(GRID * min(height, width)))
    margin = RINGS * step
    span = range(-RINGS, RINGS + 1)
    offsets = [
        (slice(margin + y * step, margin + y * step + height),
         slice(margin + x * step, margin + x * step + width),
         FADE * (y * y + x * x) / RINGS**2)
        for y in span for x in span if y * y + x * x <= RINGS**2
    ]  # fmt: skip
    guide, values = image.float(), colormap.float()
    guide_around = pad(guide, (margin,) * 4, mode="replicate")
    for _ in range(PASSES):
        around = pad(values, (margin,) * 4, mode="replicate")
        total, weights = torch.zeros_like(values), torch.zeros_like(values[:, :1])
        for rows, columns, far in offsets:
            near = around[..., rows, columns]
            picture = (guide_around[..., rows, columns] - guide).abs_().sum(1, keepdim=True)
            painted = (near - values).square_().sum(1, keepdim=True)
            unlike = (picture / IMAGE_STD).square_() + painted / COLORMAP_STD**2
            weight = torch.exp(-0.5 * unlike - far)
            weights += weight
            total.addcmul_(weight, near)
        values = total / weights
    return values.round().byte()
