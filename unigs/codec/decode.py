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

from unigs.codec.colours import (
    Colours,
    Features,
    collect_colours,
    colour_features,
    sum_by,
)
from unigs.codec.dichotomy import dichotomise, split_by_means
from unigs.codec.palette import Palette, cell_colours, cell_homes
from unigs.codec.refine import Places, fill_holes, refine_colormap
from unigs.codec.sharpness import nearest_legal
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
    palette: Palette | None = Palette(),  # noqa: B008
    *,
    mode: Literal["entity", "foreground"] = "entity",
    decoder: str = "refined",
    delta: float = 10,
    features: Features = "rgb+lab",
    clusters: int | Sequence[int] | None = None,
) -> Decoded:
    """Find the entities of colormaps.

    Args:
        colormap: uint8, or float in 0..1, [B, 3, H, W] or [3, H, W].
        refine: ``palette`` reads cores, legal colours and places (:mod:`unigs.codec.refine`) and
            needs no clustering; None is the paper's module alone, with the options below ``cells``.
        mode: ``entity`` gives a full partition, black regions included, but fills black holes
            inside one entity; ``foreground`` makes what is nearest to black background, label 0.
        cells: cells per side of the palette that painted the map; None if nothing is known of it.
        assignment: how it chose colours; ``random`` ones tell no places.
        decoder: without refinement, ``dichotomy`` or the ``kmeans`` of Table 8.
        delta: the dichotomy's threshold (Table 9a), in units of the features, > 0.
        features: ``rgb+lab``, ``rgb`` or ``lab`` (Table 9b).
        clusters: K of ``kmeans``, one for all or one per image.

    Returns:
        Labels and scores. A score is the share of an entity's pixels inside its outline, see
        :func:`score_entities`: masks are wrong at their outlines, so compact ones come first. How
        well pixels agree with a legal colour ranks masks worse (docs/codec.md). Labels are
        ordered by area, so that a stable sort by score breaks ties by area.

    Raises:
        DecodeError: wrong shape, dtype or range; an option that is wrong or would be ignored.

    Example:
        >>> labels = torch.tensor([[1, 1, 2, 2]]).repeat(4, 1)
        >>> decode_colormap(encode_colormap(labels)).labels.shape
        torch.Size([1, 4, 4])
    """
    batch = _as_bytes(colormap)
    refine = "palette" if decoder == "refined" else None
    decoder = "dichotomy" if refine else decoder
    cells, assignment = (palette.cells, palette.kind) if palette else (None, "random")
    _check_options(refine, mode, decoder, delta, features, clusters, len(batch))
    if not batch.numel():
        return Decoded(batch[:, 0].int(), [[] for _ in batch])
    with torch.autocast(batch.device.type, enabled=False):
        if refine == "palette":
            places = None
            if cells is not None and assignment != "random":
                grid = (cells, batch.device, assignment)
                places = Places(cell_colours(*grid), cell_homes(*grid), cells)
            entity, image, colour = refine_colormap(batch, places)
            if mode == "entity":
                entity = fill_holes(entity, colour)
        else:
            colours = collect_colours(batch)
            leaf, image, colour = _cluster(colours, decoder, delta, features, clusters)
            entity = leaf[colours.pixel]
        score, area = score_entities(entity, len(colour))
    kept = area > 0
    if mode == "foreground":
        kept &= colour != 0
    return _number_entities(entity, image, area, score, kept)


def _cluster(
    colours: Colours,
    decoder: str,
    delta: float,
    features: Features,
    clusters: int | Sequence[int] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The paper's decoders: cluster of each colour; image and nearest legal colour of each."""
    values = colour_features(colours.rgb, features)
    if decoder == "dichotomy":
        leaf = dichotomise(colours, values, delta)
    else:
        images = int(colours.image[-1]) + 1
        wanted = [clusters] * images if isinstance(clusters, int) else list(clusters or [])
        leaf = split_by_means(values, colours.count, colours.image, wanted)
    groups = int(leaf.max()) + 1
    image = torch.zeros(groups, dtype=torch.long, device=leaf.device)
    image.scatter_(0, leaf, colours.image)
    total = sum_by(leaf, groups, colours.count * colours.rgb.t().double())
    mean = total / sum_by(leaf, groups, colours.count)
    return leaf, image, nearest_legal(mean[None])[0]


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
    if not (low >= 0 and high <= 1):  # a NaN fails both
        raise DecodeError(f"expected floats in 0..1, got {float(low)}..{float(high)}, {where}")
    return (batch * 255).round().to(torch.uint8)


def _check_options(
    refine: str | None,
    mode: str,
    decoder: str,
    delta: float,
    features: str,
    clusters: int | Sequence[int] | None,
    images: int,
) -> None:
    """Refuse what is unknown, and options of the plain decoders where they would be ignored."""
    where = "in decode_colormap"
    known = (
        ("refine", refine, ("palette", None)),
        ("mode", mode, ("entity", "foreground")),
        ("decoder", decoder, ("dichotomy", "kmeans")),
        ("features", features, ("rgb+lab", "rgb", "lab")),
    )
    for name, value, choices in known:
        if value not in choices:
            raise DecodeError(f"expected {name} in {choices}, got {value!r}, {where}")
    if not delta > 0:
        raise DecodeError(f"expected delta > 0, got {delta}, {where}")
    if refine and (decoder, delta, features, clusters) != ("dichotomy", 10, "rgb+lab", None):
        raise DecodeError(
            f"expected refine=None with options of the plain decoders, got {refine!r}, {where}"
        )
    if (decoder == "kmeans") != (clusters is not None):
        raise DecodeError(f"expected clusters with decoder='kmeans' only, got {clusters}, {where}")
    if isinstance(clusters, Sequence) and len(clusters) != images:
        raise DecodeError(
            f"expected {images} clusters, one per image, got {len(clusters)}, {where}"
        )
    wanted = [clusters] if isinstance(clusters, int) else clusters or [1]
    if min(wanted) < 1:
        raise DecodeError(f"expected clusters >= 1, got {min(wanted)}, {where}")


Decoder = Literal["refined", "dichotomy"]
Mode = Literal["entity", "foreground"]
