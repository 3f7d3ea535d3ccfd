"""Entity masks -> colormap: location-aware painting (paper, Section 3.2, Eq. 4).

In: a label map, 0 = background, k = entity k. Out: a uint8 colormap in which each entity carries
the colour of the cell that holds its centre of mass. Stands after every geometric augmentation and
before the VAE; :mod:`unigs.codec.decode` is the inverse. Runs on the labels' device, over the whole
batch at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from unigs.codec.palette import SIZES, Palette, PaletteError, legal_colours
from unigs.records import Skips
from unigs.seeds import rng


@dataclass(frozen=True, slots=True, eq=False)
class Entities:
    """What a palette asks of every label of every image, label 0 among them.

    Attributes:
        area: int64 [B, L + 1] pixels; 0 for label 0 and for those that are not painted.
        first: int64 [B, L + 1], the first pixel, row by row. It tells apart even entities of one
            size around one centre.
        cell: int64 [B, L + 1], where the centre is: a row of the palette's colours and homes.
        centre: float64 [B, L + 1, 2 or 3], the centre in cells, as the palette's homes are.
    """

    area: Tensor
    first: Tensor
    cell: Tensor
    centre: Tensor


def encode_colormap(
    labels: Tensor,
    palette: Palette = Palette(),
    *,
    seeds: Sequence[int] | None = None,
    collisions: Literal["nearest", "paper"] = "nearest",
    overflow: Literal["error", "drop"] = "error",
    skips: Skips | None = None,
    largest: int | None = None,
) -> Tensor:
    """Paint each entity with a legal colour (Eq. 4).

    Args:
        labels: ints [B, H, W] or [H, W]; 0 is background, painted black. Gaps are allowed.
        palette: how entities get their colours.
        seeds: one per image, needed by ``random``: the draw depends on nothing else.
        collisions: where two entities' centres share a cell (and, in ``scaled``, a size class),
            ``nearest`` sends the smaller one to the nearest free cell, so that no two are alike;
            ``paper`` lets them share the colour.
        overflow: with more entities than the palette's capacity, ``error`` raises and ``drop``
            paints the smallest of them black and counts them in ``skips``.
        skips: the tally that ``drop`` writes to.
        largest: the largest label of labels that are known to be in order: then nothing is read
            back from their device. None: they are looked at.

    Returns:
        uint8 [B, 3, H, W] or [3, H, W].

    Raises:
        PaletteError: wrong shape or dtype, negative labels, too many entities, no seeds.

    Example:
        >>> encode_colormap(torch.tensor([[0, 1], [0, 1]]), Palette(cells=7)).shape
        torch.Size([3, 2, 2])
    """
    _check_labels(labels, largest)
    batch = labels.long() if labels.dim() == 3 else labels[None].long()
    if not labels.numel():
        return labels.new_zeros(*labels.shape[:-2], 3, *labels.shape[-2:], dtype=torch.uint8)
    count = 1 + (int(batch.max()) if largest is None else largest)
    entities = _measure_entities(batch, palette, count)
    if count - 1 > palette.capacity or largest is None:
        entities = _limit_entities(entities, palette.capacity, overflow, skips)
    homes = palette.homes(labels.device)
    if homes is None:
        colour = _draw_colours(entities.area, palette, seeds)
    else:
        cell = entities.cell
        if collisions == "nearest":
            cell = _settle(entities, homes, None if largest is None else largest - 1)
        colour = palette.colours(labels.device)[cell]
    colour = torch.where(entities.area > 0, colour, 0)
    table = legal_colours(labels.device)[colour]  # [B, L + 1, 3]
    image = torch.arange(len(batch), device=labels.device)[:, None, None]
    painted = table[image, batch].permute(0, 3, 1, 2).contiguous()  # [B, 3, H, W]
    return painted if labels.dim() == 3 else painted[0]


def _check_labels(labels: Tensor, largest: int | None) -> None:
    where = "in encode_colormap"
    if labels.dim() not in (2, 3):
        raise PaletteError(
            f"expected labels [B, H, W] or [H, W], got {list(labels.shape)}, {where}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise PaletteError(f"expected integer labels, got {labels.dtype}, {where}")
    if largest is None and labels.numel() and int(labels.min()) < 0:
        raise PaletteError(f"expected labels >= 0, got {int(labels.min())}, {where}")


def _measure_entities(labels: Tensor, palette: Palette, count: int) -> Entities:
    """Area, first pixel, cell and centre of every label, 0..count - 1, of int64 [B, H, W]."""
    b, h, w = labels.shape
    cells = palette.cells
    key = (labels + torch.arange(b, device=labels.device)[:, None, None] * count).reshape(-1)

    def total(values: Tensor) -> Tensor:
        sums = torch.zeros(b * count, dtype=torch.long, device=labels.device)
        return sums.index_add_(0, key, values.expand(b, h, w).reshape(-1)).view(b, count)

    area = total(torch.ones((), dtype=torch.long, device=labels.device))
    # Twice the sums of pixel centres: integers, so that no device rounds a centre across a border.
    y = total(2 * torch.arange(h, device=labels.device)[:, None] + 1)
    x = total(2 * torch.arange(w, device=labels.device) + 1)
    n = area.clamp(min=1)
    cell = y * cells // (2 * h * n) * cells + x * cells // (2 * w * n)
    centre = torch.stack((y / (2 * h * n), x / (2 * w * n)), -1).double() * cells
    if palette.kind == "scaled":
        size = _find_sizes(area, cells, h * w)
        cell = size * cells**2 + cell
        centre = torch.cat((centre, size[..., None] + 0.5), -1)
    place = torch.arange(h * w, device=labels.device).repeat(b)
    first = torch.full_like(area, h * w).view(-1)
    first = first.scatter_reduce(0, key, place, "amin").view(b, count)
    area[:, 0] = 0
    return Entities(area, first, cell, centre)


def _find_sizes(area: Tensor, cells: int, pixels: int) -> Tensor:
    """Size class of each area of a picture of so many pixels; of whole numbers alone."""
    bounds = torch.arange(1, SIZES, device=area.device) ** 2 * pixels
    return (area[..., None] * cells**2 >= bounds).sum(-1)


def _limit_entities(entities: Entities, limit: int, overflow: str, skips: Skips | None) -> Entities:
    """Raise, or zero the areas of the smallest, where an image has more than ``limit`` entities."""
    present = (entities.area > 0).sum(1)
    if int(present.max()) <= limit:
        return entities
    worst = int(present.argmax())
    if overflow == "error":
        raise PaletteError(
            f"expected at most {limit} entities, got {int(present[worst])}, in image {worst} of the"
            " batch; overflow='drop' leaves out the smallest"
        )
    dropped = (_rank_entities(entities) >= limit) & (entities.area > 0)
    for image, label in dropped.nonzero().tolist():
        if skips is not None:
            skips.add("more entities than palette cells", f"label {label} of image {image}")
    return replace(entities, area=entities.area.masked_fill(dropped, 0))


def _rank_entities(entities: Entities) -> Tensor:
    """Place of each entity by size, largest 0; equal sizes by first pixel, never by label."""
    order = torch.arange(entities.area.shape[1], device=entities.area.device)
    order = order.expand_as(entities.area)
    for key in (entities.first, -entities.area):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    return order.argsort(dim=1)


def _settle(entities: Entities, homes: Tensor, rounds: int | None) -> Tensor:
    """Give every entity a cell of its own: the largest at home, the others where it is free.

    Args:
        entities: of all images.
        homes: of the palette.
        rounds: at least as many as an image has entities without a home; None: just as many.
    """
    present, home = entities.area > 0, entities.cell
    b, device = len(home), home.device
    rank = torch.where(present, _rank_entities(entities), home.shape[1])
    best = torch.full((b, len(homes)), home.shape[1], device=device)
    best = best.scatter_reduce(1, home, rank, "amin")
    taken = best < home.shape[1]
    homeless = present & (best.gather(1, home) != rank)
    cell, image = home.clone(), torch.arange(b, device=device)
    order = torch.where(homeless, rank, home.shape[1]).argsort(dim=1, stable=True)
    for step in range(int(homeless.sum(1).max()) if rounds is None else rounds):
        who = order[:, step]
        moves = homeless[image, who]
        distance = (entities.centre[image, who][:, None] - homes).square().sum(-1)
        free = distance.masked_fill(taken, torch.inf).argmin(1)
        cell[image, who] = torch.where(moves, free, cell[image, who])
        taken[image, free] |= moves
    return cell


def _draw_colours(area: Tensor, palette: Palette, seeds: Sequence[int] | None) -> Tensor:
    """Distinct random colours per image (the ablation of Table 7), int64 [B, L + 1]."""
    if seeds is None or len(seeds) != len(area):
        got = "none" if seeds is None else str(len(seeds))
        raise PaletteError(
            f"expected {len(area)} seeds, one per image, got {got}, for random colours"
        )
    colour, choices = torch.zeros_like(area), palette.colours(area.device)
    for image, seed in enumerate(seeds):
        order = rng(seed, 0, "palette").permutation(palette.capacity)
        place = (area[image] > 0).nonzero()[:, 0]
        colour[image, place] = choices[torch.from_numpy(order).to(area.device)[: len(place)]]
    return colour
