"""Colormap -> entities: the one call around dichotomy and refinement (paper, Section 3.2).

In: a colormap as painted, decoded by a VAE, or generated. Out: :class:`Decoded`. The inverse of
:func:`unigs.codec.palette.encode_colormap`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unigs.codec import dichotomy
from unigs.codec.dichotomy import Colours, Features, colour_features, dichotomise, sum_by
from unigs.codec.palette import MAX_CELLS, legal_colours
from unigs.codec.refine import merge_by_palette, nearest_legal
from unigs.records import UnigsError


class DecodeError(UnigsError):
    """A colormap that cannot be decoded."""


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """Entities of a batch of colormaps.

    Attributes:
        labels: int32 [B, H, W]; 0 is background, 1..N entities, largest first.
        scores: per image one float in 0..1 per label 1..N.
    """

    labels: Tensor
    scores: list[list[float]]


@torch.no_grad()
def decode_colormap(
    colormap: Tensor,
    *,
    refine: Literal["palette"] | None = "palette",
    mode: Literal["entity", "foreground"] = "entity",
    delta: float = 10,
    features: Features = "rgb+lab",
    decoder: Literal["dichotomy", "kmeans"] = "dichotomy",
    clusters: int | Sequence[int] | None = None,
    cells: int = MAX_CELLS,
) -> Decoded:
    """Find the entities of colormaps.

    Args:
        colormap: uint8, or float in 0..1, [B, 3, H, W] or [3, H, W].
        refine: ``palette`` uses the legal colours and their places; None is the paper's module.
        mode: ``entity`` gives a full partition, each cluster an entity; ``foreground`` drops the
            near-black background, label 0.
        delta: the dichotomy's threshold (Table 9a), in units of the features, > 0.
        features: ``rgb+lab``, ``rgb`` or ``lab`` (Table 9b).
        decoder: ``dichotomy``, or the ``kmeans`` of Table 8.
        clusters: K of ``kmeans``, one for all or one per image.
        cells: cells per side of the palette that painted the map.

    Returns:
        Labels and scores. A score is the agreement of an entity's pixels with its colour: 1 - mean
        distance to its legal colour / mean distance to the runner-up colour, RGB, clipped at 0.
        Labels are ordered by area, so that a stable sort by score breaks ties by area.

    Raises:
        DecodeError: wrong shape, dtype or range; a bad ``delta`` or ``clusters``.
    """
    batch = _as_bytes(colormap)
    if not delta > 0:
        raise DecodeError(f"expected delta > 0, got {delta}, in decode_colormap")
    colours = dichotomy.collect_colours(batch)
    values = colour_features(colours.rgb, features)
    leaf = dichotomise(values, colours.count, colours.image, delta)
    groups = int(leaf.max()) + 1 if len(leaf) else 0
    image = torch.zeros(groups, dtype=torch.long, device=leaf.device)
    image.scatter_(0, leaf, colours.image)
    size = sum_by(leaf, groups, colours.count)
    rgb = colours.rgb.double()
    mean = sum_by(leaf, groups, colours.count[:, None] * rgb) / size[:, None]
    if refine == "palette" and groups:
        leaf = merge_by_palette(mean, image)[leaf]
    return _number_entities(colours, leaf, mode, len(batch))


def _as_bytes(colormap: Tensor) -> Tensor:
    """Check a colormap and bring it to uint8 [B, 3, H, W]."""
    where = "in decode_colormap"
    if colormap.dim() not in (3, 4) or colormap.shape[-3] != 3:
        raise DecodeError(
            f"expected [B, 3, H, W] or [3, H, W], got {list(colormap.shape)}, {where}"
        )
    batch = colormap if colormap.dim() == 4 else colormap[None]
    if batch.dtype == torch.uint8:
        return batch
    if not batch.is_floating_point():
        raise DecodeError(f"expected uint8 or float, got {batch.dtype}, {where}")
    batch = batch.float()
    low, high = (batch.amin(), batch.amax()) if batch.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        raise DecodeError(f"expected floats in 0..1, got {float(low)}..{float(high)}, {where}")
    return (batch * 255).round().to(torch.uint8)


def _number_entities(colours: Colours, group: Tensor, mode: str, images: int) -> Decoded:
    """Number groups per image by area and score them."""
    rgb, count = colours.rgb.double(), colours.count
    groups = int(group.max()) + 1 if len(group) else 0
    image = torch.zeros(groups, dtype=torch.long, device=group.device)
    image.scatter_(0, group, colours.image)
    size = sum_by(group, groups, count)
    mean = sum_by(group, groups, count[:, None] * rgb) / size[:, None]
    legal = legal_colours(group.device).double()
    apart, order = torch.cdist(mean, legal).sort(dim=1, stable=True)
    own, other = legal[order[:, 0]], legal[order[:, 1]]
    near = sum_by(group, groups, count * (rgb - own[group]).norm(dim=1))
    far = sum_by(group, groups, count * (rgb - other[group]).norm(dim=1))
    score = (1 - near / far).clamp(0, 1)
    kept = torch.ones_like(image, dtype=torch.bool)
    if mode == "foreground":
        kept = nearest_legal(mean) != 0
    order = size.argsort(descending=True, stable=True)
    order = order[image[order].argsort(stable=True)]
    order = order[kept[order]]
    scores: list[list[float]] = [[] for _ in range(images)]
    number = torch.zeros_like(image)
    for g, i, s in zip(order.tolist(), image[order].tolist(), score[order].tolist()):
        scores[i].append(s)
        number[g] = len(scores[i])
    labels = number[group][colours.pixel].int() if groups else colours.pixel.int()
    return Decoded(labels, scores)
