"""Colormap -> entities: refinement, dichotomy and k-means, one call each (paper, Section 3.2).

In: a colormap as painted, decoded by a VAE, or generated. Out: :class:`Decoded`. The inverse of
:func:`unigs.codec.paint.encode_colormap`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from unigs.codec.colours import Colours, Features, collect_colours, colour_features, sum_by
from unigs.codec.dichotomy import dichotomise
from unigs.codec.kmeans import split_by_means
from unigs.codec.palette import Palette, nearest_legal
from unigs.codec.refine import fill_holes, refine_colormap
from unigs.records import Decoder, UnigsError

Mode = Literal["entity", "foreground"]
"""``entity`` gives a full partition, black regions included; ``foreground`` makes what is nearest
to black background, label 0."""

Found = tuple[Tensor, Tensor, Tensor]
"""entity: int64 [B, H, W], numbers through the batch. image: int64 [E], the image of each entity.
colour: int64 [E], the legal colour of each, 0 is black."""


class DecodeError(UnigsError):
    """A colormap that cannot be decoded."""


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """Entities of a batch of colormaps.

    Attributes:
        labels: int32 [B, H, W]; 0 is background, 1..N entities, largest first.
        scores: per image one float in 0..1 per label 1..N: the share of an entity's pixels inside
            its outline, see :func:`score_entities`. Masks are wrong at their outlines, so compact
            ones come first; a stable sort by score breaks ties by area.
    """

    labels: Tensor
    scores: list[list[float]]


def decode_colormap(
    colormap: Tensor,
    palette: Palette | None = Palette(),
    *,
    mode: Mode = "entity",
    decoder: Decoder = "refined",
) -> Decoded:
    """Find the entities of colormaps by the decoder of that name, with its defaults.

    Args:
        colormap: uint8, or float in 0..1, [B, 3, H, W] or [3, H, W].
        palette: what painted it, None if unknown; the dichotomy has no use for it.
        mode: whether black is an entity or background.
        decoder: :func:`decode_refined` or :func:`decode_dichotomy`.

    Raises:
        DecodeError: wrong shape, dtype or range; an unknown mode or decoder.

    Example:
        >>> labels = torch.tensor([[1, 1, 2, 2]]).repeat(4, 1)
        >>> decode_colormap(encode_colormap(labels)).labels.shape
        torch.Size([1, 4, 4])
    """
    _check_choice("decoder", decoder, get_args(Decoder))
    if decoder == "dichotomy":
        return decode_dichotomy(colormap, mode)
    return decode_refined(colormap, palette, mode)


def decode_refined(
    colormap: Tensor, palette: Palette | None = Palette(), mode: Mode = "entity"
) -> Decoded:
    """Read cores, legal colours and places, without any clustering (:mod:`unigs.codec.refine`).

    Args:
        colormap: uint8, or float in 0..1, [B, 3, H, W] or [3, H, W].
        palette: what painted it; None if nothing is known of it.
        mode: whether black is an entity or background. In ``entity``, black holes inside one entity
            are filled.

    Raises:
        DecodeError: wrong shape, dtype or range; an unknown mode.
    """

    def find(batch: Tensor) -> Found:
        entity, image, colour = refine_colormap(batch, palette)
        return fill_holes(entity, colour) if mode == "entity" else entity, image, colour

    return _decode(colormap, mode, find)


def decode_dichotomy(
    colormap: Tensor, mode: Mode = "entity", delta: float = 10.0, features: Features = "rgb+lab"
) -> Decoded:
    """The paper's own decoder: split colours in two until each cluster is tight (Eqs. 5-7).

    Args:
        colormap: uint8, or float in 0..1, [B, 3, H, W] or [3, H, W].
        mode: whether black is an entity or background.
        delta: the threshold (Table 9a), in units of the features, > 0.
        features: what colours are compared by (Table 9b).

    Raises:
        DecodeError: wrong shape, dtype or range; an unknown mode, wrong delta or features.
    """
    if not delta > 0:
        raise DecodeError(f"expected delta > 0, got {delta}, in decode_dichotomy")
    _check_choice("features", features, get_args(Features))

    def find(batch: Tensor) -> Found:
        colours = collect_colours(batch)
        return _describe(
            colours, dichotomise(colours, colour_features(colours.rgb, features), delta)
        )

    return _decode(colormap, mode, find)


def decode_kmeans(
    colormap: Tensor,
    clusters: int | Sequence[int],
    mode: Mode = "entity",
    features: Features = "rgb+lab",
) -> Decoded:
    """K-means on colours, for a number of entities that is known (Table 8).

    Args:
        colormap: uint8, or float in 0..1, [B, 3, H, W] or [3, H, W].
        clusters: K, one for all or one per image, >= 1.
        mode: whether black is an entity or background.
        features: what colours are compared by (Table 9b).

    Raises:
        DecodeError: wrong shape, dtype or range; an unknown mode, wrong clusters or features.
    """
    _check_choice("features", features, get_args(Features))

    def find(batch: Tensor) -> Found:
        wanted = [clusters] * len(batch) if isinstance(clusters, int) else list(clusters)
        if len(wanted) != len(batch) or min(wanted) < 1:
            raise DecodeError(
                f"expected clusters >= 1, one for all or one for each of {len(batch)} images, "
                f"got {clusters}, in decode_kmeans"
            )
        colours = collect_colours(batch)
        points = colour_features(colours.rgb, features)
        return _describe(colours, split_by_means(colours, points, wanted))

    return _decode(colormap, mode, find)


@torch.no_grad()
def _decode(colormap: Tensor, mode: Mode, find: Callable[[Tensor], Found]) -> Decoded:
    """What every decoder does around finding entities in uint8 [B, 3, H, W]."""
    _check_choice("mode", mode, get_args(Mode))
    batch = _as_bytes(colormap)
    if not batch.numel():
        return Decoded(batch[:, 0].int(), [[] for _ in batch])
    with torch.autocast(batch.device.type, enabled=False):
        entity, image, colour = find(batch)
    score, area = score_entities(entity, len(colour))
    kept = (area > 0) & ((colour != 0) | (mode == "entity"))
    return _number_entities(entity, image, area, score, kept)


def _describe(colours: Colours, leaf: Tensor) -> Found:
    """Clusters int64 [U] of distinct colours as entities; their colour is the legal one nearest."""
    groups = int(leaf.max()) + 1
    image = torch.zeros(groups, dtype=torch.long, device=leaf.device)
    image.scatter_(0, leaf, colours.image)
    total = sum_by(leaf, groups, colours.count * colours.rgb.t().double())
    mean = total / sum_by(leaf, groups, colours.count)
    return leaf[colours.pixel], image, nearest_legal(mean[None])[0]


def score_entities(entity: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Share of each entity's pixels that no error of its outline by one pixel can touch; its area.

    Args:
        entity: int64 [B, H, W] in 0..count-1, numbered through the batch.
        count: entities E; one without pixels has score 0.

    Returns:
        float64 [E] in 0..1: the pixels whose four neighbours are of the same entity, over all; the
        picture's edge is no outline. And int64 [E] pixels.
    """
    inner = torch.ones_like(entity, dtype=torch.bool)
    for dim in (1, 2):
        size = entity.shape[dim]
        before, after = entity.narrow(dim, 0, size - 1), entity.narrow(dim, 1, size - 1)
        same = before == after
        inner.narrow(dim, 0, size - 1).logical_and_(same)
        inner.narrow(dim, 1, size - 1).logical_and_(same)
    flat = entity.view(-1)
    area = torch.bincount(flat, minlength=count)
    inside = torch.bincount(flat, weights=inner.view(-1).double(), minlength=count)
    return inside / area.clamp(min=1), area


def _number_entities(
    entity: Tensor, image: Tensor, area: Tensor, score: Tensor, kept: Tensor
) -> Decoded:
    """Number what is kept 1..N per image, largest first; the rest is background."""
    images = len(entity)
    order = area.argsort(descending=True, stable=True)
    order = order[image[order].argsort(stable=True)]
    order = order[kept[order]]
    counts = torch.bincount(image[order], minlength=images)
    first = counts.cumsum(0) - counts
    number = torch.zeros_like(area)
    number[order] = torch.arange(1, len(order) + 1, device=area.device) - first[image[order]]
    scores = [part.tolist() for part in score[order].cpu().split(counts.tolist())]
    return Decoded(number[entity].int(), scores)


def _as_bytes(colormap: Tensor) -> Tensor:
    """Check a colormap and bring it to uint8 [B, 3, H, W]."""
    where = "in a colormap's decoder"
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
    if not (low >= 0 and high <= 1):  # a NaN fails both
        raise DecodeError(f"expected floats in 0..1, got {float(low)}..{float(high)}, {where}")
    return (batch * 255).round().to(torch.uint8)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise DecodeError(f"expected {name} in {choices}, got {value!r}, in a colormap's decoder")
