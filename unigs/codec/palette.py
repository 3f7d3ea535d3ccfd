"""Entity masks -> colormap: the location-aware palette (paper, Section 3.2, Eq. 4).

In: a label map, 0 = background, k = entity k. Out: a uint8 colormap in which each entity carries
the colour of the cell that holds its centre of mass. Stands after every geometric augmentation and
before the VAE; :mod:`unigs.codec.decode` is the inverse. Runs on the labels' device, over the whole
batch at once.

Levels {0, 64, 128, 192, 255} per channel give 125 colours; black is background, 124 are entities'.
The picture is cut into ``cells`` x ``cells`` cells. The paper does not say which cell has which
colour: ``CELL_COLOURS`` is derived by ``tools/optimise_palette.py``. A coarser grid takes the
table's upper left corner, where neighbours are the same as in the whole.

Two further assignments are rules that a small network learns sooner than a table. ``gradient``:
red grows by column, green by row. ``scaled``: the same, and blue falls with the entity's size, so
that a thing stands out from one of a larger class that it lies on, wherever their centres are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from unigs.codec.cell_colours import CELL_COLOURS
from unigs.records import Skips, UnigsError
from unigs.seeds import rng

LEVELS = (0, 64, 128, 192, 255)
MAX_CELLS = 11
SIZES = 4
"""Size classes of ``scaled``: an entity of class k is as large as a square of k to k + 1 cells."""

Assignment = Literal["location", "gradient", "scaled", "random"]
"""How entities get colours: by the place of their centre, neighbours far apart in colour (the
paper's rule with our table) or alike; by place and size; or at random (the ablation of Table 7)."""


class PaletteError(UnigsError):
    """Labels that the palette cannot paint."""


Kind = Assignment


@dataclass(frozen=True)  # no slots: the command line reads its fields
class Palette:
    """STUB."""

    kind: Kind = "location"
    cells: int = MAX_CELLS

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise PaletteError(f"expected a kind of palette of {get_args(Kind)}, got {self.kind!r}")
        cell_colours(self.cells, assignment=self.kind)

    @property
    def capacity(self) -> int:
        return 124 if self.kind == "random" else len(self.colours())

    def colours(self, device="cpu"):
        return cell_colours(self.cells, device, self.kind)

    def homes(self, device="cpu"):
        return None if self.kind == "random" else cell_homes(self.cells, device, self.kind)


def legal_colours(device: torch.device | str = "cpu") -> Tensor:
    """All 125 legal colours, black first, uint8 [125, 3]."""
    levels = torch.tensor(LEVELS, dtype=torch.uint8, device=device)
    return torch.cartesian_prod(levels, levels, levels)


def cell_colours(
    cells: int = MAX_CELLS,
    device: torch.device | str = "cpu",
    assignment: Assignment = "location",
) -> Tensor:
    """Colour numbers of a ``cells`` x ``cells`` grid, row by row, int64 [cells * cells].

    ``gradient`` lets red grow from left to right and green from top to bottom, half blue
    throughout; ``scaled`` has such a grid for each of the ``SIZES`` classes, smallest and bluest
    first, int64 [SIZES * cells * cells]. Both allow up to 5 cells and never give black.
    """
    rule = assignment in ("gradient", "scaled")
    limit = len(LEVELS) if rule else MAX_CELLS
    if not 1 <= cells <= limit:
        raise PaletteError(
            f"expected 1..{limit} cells per side, got {cells}, in the {assignment} palette"
        )
    if rule:
        level = torch.arange(cells, device=device)
        blue = len(LEVELS) - 1 - torch.arange(SIZES, device=device)
        blue = blue if assignment == "scaled" else blue.new_full((1,), 2)
        return (level * 25 + level[:, None] * 5 + blue[:, None, None]).reshape(-1)
    return torch.tensor(CELL_COLOURS, device=device)[:cells, :cells].reshape(-1)


def cell_homes(
    cells: int, device: torch.device | str = "cpu", assignment: Assignment = "location"
) -> Tensor:
    """Where entities of each of ``cell_colours`` belong, in cells, float64 [P, 2] or [P, 3].

    Row and column of the cell's middle and, for ``scaled``, the middle of the size class.
    """
    axes = [torch.arange(cells, device=device, dtype=torch.double) + 0.5] * 2
    if assignment != "scaled":
        return torch.cartesian_prod(*axes)
    size = torch.arange(SIZES, device=device, dtype=torch.double) + 0.5
    return torch.cartesian_prod(size, *axes)[:, [1, 2, 0]]


def encode_colormap(
    labels: Tensor,
    palette: Palette = Palette(),
    *,
    collisions: Literal["nearest", "paper"] = "nearest",
    seeds: Sequence[int] | None = None,
    overflow: Literal["error", "drop"] = "error",
    skips: Skips | None = None,
) -> Tensor:
    """Paint each entity with a legal colour (Eq. 4).

    Args:
        labels: ints [B, H, W] or [H, W]; 0 is background, painted black. Gaps are allowed.
        assignment: ``location`` is the paper's rule, ``gradient`` the same with neighbours alike,
            ``scaled`` adds the size, ``random`` draws distinct colours (Table 7).
        collisions: where two entities' centres share a cell (and, in ``scaled``, a size class),
            ``nearest`` sends the smaller one to the nearest free cell, so that no two are alike;
            ``paper`` lets them share the colour.
        seeds: one per image, needed by ``random``: the draw depends on nothing else.
        cells: cells per side, 1..11.
        overflow: with more entities than cells, ``error`` raises and ``drop`` paints the smallest
            of them black and counts them in ``skips``.
        skips: the tally that ``drop`` writes to.

    Returns:
        uint8 [B, 3, H, W] or [3, H, W].

    Raises:
        PaletteError: wrong shape or dtype, negative labels, too many entities, no seeds.
    """
    _check_labels(labels)
    cells, assignment = palette.cells, palette.kind
    batch = labels if labels.dim() == 3 else labels[None]
    if not labels.numel():
        return labels.new_zeros(*labels.shape[:-2], 3, *labels.shape[-2:], dtype=torch.uint8)
    entities = _measure_entities(batch.long(), cells)
    _limit_entities(entities, palette.capacity, overflow, skips)
    if assignment != "random":
        if assignment == "scaled":
            entities |= _measure_sizes(entities, cells, labels.shape[-2] * labels.shape[-1])
        homes = cell_homes(cells, labels.device, assignment)
        cell = _settle(entities, homes) if collisions == "nearest" else entities["cell"]
        colour = cell_colours(cells, labels.device, assignment)[cell]
    else:
        colour = _draw_colours(entities["area"], seeds)
    colour = torch.where(entities["area"] > 0, colour, 0)
    table = legal_colours(labels.device)[colour]  # [B, L + 1, 3]
    image = torch.arange(len(batch), device=labels.device)[:, None, None]
    painted = table[image, batch.long()].permute(0, 3, 1, 2).contiguous()  # [B, 3, H, W]
    return painted if labels.dim() == 3 else painted[0]


def _check_labels(labels: Tensor) -> None:
    where = "in encode_colormap"
    if labels.dim() not in (2, 3):
        raise PaletteError(
            f"expected labels [B, H, W] or [H, W], got {list(labels.shape)}, {where}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise PaletteError(f"expected integer labels, got {labels.dtype}, {where}")
    if labels.numel() and int(labels.min()) < 0:
        raise PaletteError(f"expected labels >= 0, got {int(labels.min())}, {where}")


def _measure_entities(labels: Tensor, cells: int) -> dict[str, Tensor]:
    """Area, cell and centre of every label of every image, [B, L + 1]; label 0 has area 0."""
    b, h, w = labels.shape
    count = int(labels.max()) + 1
    key = (labels + torch.arange(b, device=labels.device)[:, None, None] * count).reshape(-1)

    def total(values: Tensor) -> Tensor:
        sums = torch.zeros(b * count, dtype=torch.long, device=labels.device)
        return sums.index_add_(0, key, values.expand(b, h, w).reshape(-1)).view(b, count)

    ones = torch.ones((), dtype=torch.long, device=labels.device)
    area = total(ones)
    # Twice the sums of pixel centres: integers, so that no device rounds a centre across a border.
    y = total(2 * torch.arange(h, device=labels.device)[:, None] + 1)
    x = total(2 * torch.arange(w, device=labels.device) + 1)
    n = area.clamp(min=1)
    row, column = y * cells // (2 * h * n), x * cells // (2 * w * n)
    area[:, 0] = 0
    # Centres in cells, for the distance to free cells.
    centre = torch.stack((y / (2 * h * n), x / (2 * w * n)), -1).double() * cells
    # The first pixel tells apart even entities of one size around one centre.
    first = torch.full_like(area, h * w).view(-1)
    place = torch.arange(h * w, device=labels.device).repeat(b)
    first = first.scatter_reduce(0, key, place, "amin").view(b, count)
    return {"area": area, "cell": row * cells + column, "centre": centre, "first": first}


def _measure_sizes(entities: dict[str, Tensor], cells: int, pixels: int) -> dict[str, Tensor]:
    """``cell`` and ``centre`` with the size class as a third coordinate; of whole numbers alone."""
    cell, centre, area = entities["cell"], entities["centre"], entities["area"]
    bounds = torch.arange(1, SIZES, device=area.device) ** 2 * pixels
    size = (area[..., None] * cells**2 >= bounds).sum(-1)
    return {
        "cell": size * cells**2 + cell,
        "centre": torch.cat((centre, size[..., None] + 0.5), -1),
    }


def _limit_entities(
    entities: dict[str, Tensor], limit: int, overflow: str, skips: Skips | None
) -> None:
    """Raise, or zero the areas of the smallest, where an image has more than ``limit`` entities."""
    present = (entities["area"] > 0).sum(1)
    if int(present.max()) <= limit:
        return
    worst = int(present.argmax())
    if overflow == "error":
        raise PaletteError(
            f"expected at most {limit} entities, got {int(present[worst])}, in image {worst} of the"
            " batch; overflow='drop' leaves out the smallest"
        )
    rank = _rank_entities(entities)
    dropped = (rank >= limit) & (entities["area"] > 0)
    for image, label in dropped.nonzero().tolist():
        if skips is not None:
            skips.add("more entities than palette cells", f"label {label} of image {image}")
    entities["area"][dropped] = 0


def _rank_entities(entities: dict[str, Tensor]) -> Tensor:
    """Place of each entity by size, largest 0; equal sizes by first pixel, never by label."""
    order = torch.arange(entities["area"].shape[1], device=entities["area"].device)
    order = order.expand_as(entities["area"])
    for key in (entities["first"], -entities["area"]):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    return order.argsort(dim=1)


def _settle(entities: dict[str, Tensor], homes: Tensor) -> Tensor:
    """Give every entity a cell of its own: the largest at home, the others where it is free."""
    present, home = entities["area"] > 0, entities["cell"]
    b, device = len(home), home.device
    rank = torch.where(present, _rank_entities(entities), home.shape[1])
    best = torch.full((b, len(homes)), home.shape[1], device=device)
    best = best.scatter_reduce(1, home, rank, "amin")
    taken = best < home.shape[1]
    homeless = present & (best.gather(1, home) != rank)
    cell, image = home.clone(), torch.arange(b, device=device)
    order = torch.where(homeless, rank, home.shape[1]).argsort(dim=1, stable=True)
    for step in range(int(homeless.sum(1).max())):
        who = order[:, step]
        moves = homeless[image, who]
        distance = (entities["centre"][image, who][:, None] - homes).square().sum(-1)
        free = distance.masked_fill(taken, torch.inf).argmin(1)
        cell[image, who] = torch.where(moves, free, cell[image, who])
        taken[image, free] |= moves
    return cell


def _draw_colours(area: Tensor, seeds: Sequence[int] | None) -> Tensor:
    """Distinct random colours per image (the ablation of Table 7), int64 [B, L + 1]."""
    if seeds is None or len(seeds) != len(area):
        got = "none" if seeds is None else str(len(seeds))
        raise PaletteError(
            f"expected {len(area)} seeds, one per image, got {got}, for random colours"
        )
    colour = torch.zeros_like(area)
    for image, seed in enumerate(seeds):
        draw = torch.from_numpy(rng(seed, 0, "palette").permutation(124) + 1).to(area.device)
        place = (area[image] > 0).nonzero()[:, 0]
        colour[image, place] = draw[: len(place)]
    return colour
