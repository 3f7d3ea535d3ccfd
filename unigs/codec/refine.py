"""Colormap -> entities with what the palette knows and plain clustering does not.

In: a uint8 colormap. Out: the number of its entity for every pixel and each entity's legal colour.
Used by :mod:`unigs.codec.decode` in place of the dichotomy, which stays for the ablation.

Why it works
============
Clustering colours fails at borders. A blurred border passes through every colour between its two
sides; many of those are legal colours of other entities, so that no rule on single pixels, not even
the nearest of the true colours, can tell a blend from an entity. Four facts can.

1. *A blend is passed through, an entity is arrived at.* Walking across a border the colour keeps
   going the same way: the step before a pixel and the step after it have a large positive inner
   product. Inside an entity both steps are noise; on the ridge of a thin entity, or at a speck's
   peak, they point in opposite ways. So the pixels that no direction passes through are *cores*
   (:func:`find_cores`). The rule looks at no absolute colour: a drift over tens of pixels, a gamma
   or a colour cast leave it alone, touching entities of near colours stay apart because their
   border is a slope however low, and a spurious strip between two entities has no core at all.
   At the edge of the picture the colour is continued by point reflection, so that a slope cut by
   the edge remains a slope.
2. *Cores have legal colours.* Each core pixel takes the nearest of the 125 colours, and connected
   cores of one colour are a region. Where a smooth drift carries a colour over the limit between
   two legal ones, regions touch core to core without a slope between them; true neighbours never
   do. Such contacts are united (:func:`join_drifted`), and a region's colour is that of its mean.
3. *Colours have places.* An entity's centre of mass lies in the cell of its colour, or next to it
   after a clash; in a ``scaled`` palette the same holds of its size class. A region, or all
   regions of its colour together, whose centre fits is kept down to a few pixels; one that does
   not fit takes the colour of its place, or of an entity found with certainty, if that is near
   (its parts drifted), and is dropped only if small as well (:func:`identify`). Regions of one
   colour are one entity, which mends broken and hidden shapes.
4. *A border pixel belongs to a neighbour that is really there.* Pixels outside cores look at the
   core pixels on rings around them, near rings first until two regions are in sight, and take the
   region whose own colour there is nearest (:func:`assign_borders`). Local colours cancel the
   drift, and the nearer of two plateaus puts the border at the middle of the slope, which is where
   it was before a symmetric blur.

How much to smooth, and whether to look for blends at all, is read off each picture
(:mod:`unigs.codec.corruption`): in an unblurred one a jump stands between two flat pixels, so that
every pixel is a core and shapes of one pixel survive. A clean map therefore returns exactly. Where
noise is small against the borders' own slopes (a small map out of a VAE), smoothing would cost
entities a few pixels wide their cores: such a picture is read as it is, pixel by pixel, a slope is
what is steep for its borders, and the least entity is a part of the picture.

What is lost: an entity so thin or small that the blur leaves no extremum; two touching entities
whose colours a corruption made one; an island dropped because it is small and out of place.

All sums are of integers held exactly by their type, and every choice has a fixed order: results do
not depend on batch, device or threads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unigs.codec.colours import sum_by
from unigs.codec.corruption import PASSAGE, UNIT, Corruption, measure_corruption, sum_channels
from unigs.codec.palette import Palette, legal_colours, nearest_legal
from unigs.codec.regions import count_pairs, label_regions, list_contacts, unite

SLOPE = 20.0
"""Mean colour step at a contact of cores above which it is a border, not a drift."""
APART = 48.0
"""Distance of two regions' means from which on they are two entities, however soft their border."""
SHARE = 0.1
"""Part of the smaller region's outline that a contact by drift takes at least."""
DRIFT = 44.0
"""Farthest a region out of place may be from the colour it should have: 2/3 of a palette step."""
RINGS_PX = (1, 2, 3, 4, 6, 9)
CLEAR_PX, CLEAR_SHARP_PX, TRACE_PX = 100, 12, 3
"""Core pixels that make a region an entity without its place (blurred, sharp), and with it."""
SPECK = 2600
"""Pixels of a picture per core pixel of ``CLEAR_PX`` where noise does not decide: between fine
pictures of any size the least entity is the same part of the picture, 100 px of 512 x 512."""
HOLE = 0.25
"""Largest black hole, as a part of the entity around it, that is filled."""


def refine_colormap(colormap: Tensor, palette: Palette | None) -> tuple[Tensor, Tensor, Tensor]:
    """Find the entities of a batch of colormaps.

    Args:
        colormap: uint8 [B, 3, H, W], not empty.
        palette: what painted the map; None if nothing is known of it.

    Returns:
        entity: int64 [B, H, W], a full partition, numbers without gaps over the batch.
        image: int64 [E], the image of each entity. colour: int64 [E], its legal colour, 0 is black.
    """
    raw = colormap.float() * UNIT
    state = measure_corruption(raw)
    core, colour = find_cores(raw, state)
    region = label_regions(torch.where(core, nearest_legal(colour, UNIT), -1))
    region = join_drifted(region, colour)
    kept, image, legal = identify(region, colour, state, palette)
    number = torch.where(kept, kept.cumsum(0) - 1, -1)
    region = torch.where(region >= 0, number[region.clamp(min=0)], -1)
    region = assign_borders(region, colour)
    shades = len(legal_colours())
    code, entity = (image * shades + legal)[kept].unique(return_inverse=True)
    return entity[region], code // shades, code % shades


def smooth(raw: Tensor, times: int) -> Tensor:
    """Binomial filter of 2 * times + 1 taps on both axes, rounded to whole 1 / UNIT levels."""
    colour = F.pad(raw, (times,) * 4, mode="replicate")
    for _ in range(2 * times):
        colour = colour[..., 1:] + colour[..., :-1]
    for _ in range(2 * times):
        colour = colour[..., 1:, :] + colour[..., :-1, :]
    return colour.mul_(1 / 16**times).round_()


def find_cores(raw: Tensor, state: Corruption) -> tuple[Tensor, Tensor]:
    """The pixels that no direction passes through (fact 1).

    Returns:
        core: bool [B, H, W]. colour: float [B, 3, H, W], smoothed as the picture's noise asks.
    """

    def per_image(mask: Tensor) -> Tensor:
        return mask[:, None, None, None]

    colour = torch.where(per_image(state.quiet), smooth(raw, 1), smooth(raw, 2))
    colour = torch.where(per_image(state.fine), raw, colour)
    core = measure_passage(colour, 2) < (PASSAGE * UNIT) ** 2
    if bool(state.fine.any()):
        passed = measure_passage(colour, 1) >= state.steep[:, None, None]
        core = torch.where(state.fine[:, None, None], ~passed, core)
    core |= state.sharp[:, None, None]
    core |= ~core.flatten(1).any(1)[:, None, None]  # a picture of nothing but slopes
    return core, torch.where(per_image(state.sharp), raw, colour)


def measure_passage(colour: Tensor, reach: int) -> Tensor:
    """Greatest inner product, over four directions, of the steps before and after a pixel.

    Steps are of ``reach`` pixels, 1 or 2, along the axes and of one on the diagonals.
    """
    padded = _pad_odd(_pad_odd(colour, 3), 2)
    h, w = colour.shape[2:]
    best: Tensor | None = None
    for dy, dx in ((0, reach), (reach, 0), (1, 1), (1, -1)):
        before = padded[..., 2 - dy : 2 - dy + h, 2 - dx : 2 - dx + w]
        after = padded[..., 2 + dy : 2 + dy + h, 2 + dx : 2 + dx + w]
        back, ahead = colour - before, after - colour
        product = back[:, 0] * ahead[:, 0]
        product.addcmul_(back[:, 1], ahead[:, 1]).addcmul_(back[:, 2], ahead[:, 2])
        best = product if best is None else torch.maximum(best, product)
    assert best is not None
    return best


def _pad_odd(colour: Tensor, axis: int, by: int = 2) -> Tensor:
    """Continue an axis by point reflection at its ends; works down to one pixel."""
    size = colour.shape[axis]
    near = torch.arange(1, by + 1, device=colour.device).clamp(max=size - 1)
    first, last = colour.narrow(axis, 0, 1), colour.narrow(axis, size - 1, 1)
    left = 2 * first - colour.index_select(axis, near.flip(0))
    right = 2 * last - colour.index_select(axis, size - 1 - near)
    return torch.cat((left, colour, right), axis)


def join_drifted(region: Tensor, colour: Tensor) -> Tensor:
    """Unite regions that touch core to core without a slope between them (fact 2)."""
    one, two = list_contacts(region)
    count = int(region.max()) + 1
    flat = region.view(-1)
    a, b = flat[one], flat[two]
    outline = torch.bincount(torch.cat((a, b)) + 1, minlength=count + 1)[1:]
    real = (a >= 0) & (b >= 0)
    a, b, one, two = a[real], b[real], one[real], two[real]
    if not len(a):
        return region
    channels = colour.permute(1, 0, 2, 3).reshape(3, -1)
    step = sum_channels((channels[:, one] - channels[:, two])[None])[0].double()
    low, high, contacts, row = count_pairs(a, b, count)
    smooth_contact = sum_by(row, len(low), step) < (SLOPE * UNIT) ** 2 * contacts
    wide = contacts >= SHARE * torch.minimum(outline[low], outline[high])
    area = torch.bincount(flat + 1, minlength=count + 1)[1:]
    mean = sum_by(flat + 1, count + 1, channels.double())[:, 1:] / (area * UNIT)
    alike = (mean[:, low] - mean[:, high]).square().sum(0) < APART**2
    joined = smooth_contact & wide & alike
    root = unite(low[joined], high[joined], count)
    number = root.unique(return_inverse=True)[1]
    return torch.where(region >= 0, number[region.clamp(min=0)], -1)


def identify(
    region: Tensor, colour: Tensor, state: Corruption, palette: Palette | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Give each region its legal colour and decide whether it is one of an entity (facts 2, 3).

    Returns:
        kept: bool [R]. image: int64 [R]. legal: int64 [R], number of the legal colour.
    """
    b, h, w = region.shape
    image, mean, sums = _measure_regions(region, colour)
    legal, area = nearest_legal(mean.t()[None])[0], sums[:, 2]
    need, trace = _choose_sizes(h * w, state)
    clear = area >= need[image]
    placed = torch.ones_like(clear)
    if palette is not None and (homes := palette.homes(region.device)) is not None:
        home = homes.new_full((len(legal_colours()), homes.shape[1]), -torch.inf)
        home[palette.colours(region.device)] = homes  # of every legal colour
        near, placed = _check_places(sums, legal, image, home, palette.cells, (h, w))
        known = _list_certain(legal, image, clear & placed, b)
        legal, placed = _correct_colours(mean, legal, placed, near | known[image])
    certain = _list_certain(legal, image, clear, b)
    kept = clear | ((area >= trace[image]) & (placed | certain[image, legal]))
    kept |= state.clean[image]
    none = sum_by(image, b, kept.double()) == 0  # a picture of nothing but doubt keeps it all
    return kept | none[image], image, legal


def _measure_regions(region: Tensor, colour: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image of each region, int64 [R]; its mean colour in levels, float64 [R, 3]; its sums.

    Sums are of its pixels' rows and columns, at their middles, and of ones; float64 [R, 3], exact.
    """
    b, h, w = region.shape
    group = region.view(-1) + 1
    count = int(region.max()) + 1

    def total(values: Tensor) -> Tensor:
        values = values.expand(b, h, w).reshape(-1).double()
        return torch.bincount(group, weights=values, minlength=count + 1)[1:]

    area = torch.bincount(group, minlength=count + 1)[1:].double()
    y = total(torch.arange(h, device=region.device)[:, None] + 0.5)
    x = total(torch.arange(w, device=region.device) + 0.5)
    image = torch.zeros(count + 1, dtype=torch.long, device=region.device)
    owner = torch.arange(b, device=region.device)[:, None, None].expand(b, h, w)
    image = image.scatter_(0, group, owner.reshape(-1))[1:]
    mean = torch.stack([total(channel) for channel in colour.unbind(1)], 1)
    return image, mean / (area[:, None] * UNIT), torch.stack((y, x, area), 1)


def _choose_sizes(pixels: int, state: Corruption) -> tuple[Tensor, Tensor]:
    """Core pixels that make a region an entity of each image without its place, and with it."""
    share = min(max(pixels // SPECK, CLEAR_SHARP_PX), CLEAR_PX)
    need = torch.where(state.fine, share, CLEAR_PX)
    trace = torch.where(state.fine, max(share // 10, TRACE_PX), TRACE_PX)
    return torch.where(state.sharp, CLEAR_SHARP_PX, need), trace


def _list_certain(legal: Tensor, image: Tensor, chosen: Tensor, images: int) -> Tensor:
    """Legal colours that a chosen region of an image has; bool [B, 125]."""
    certain = torch.zeros(images, len(legal_colours()), dtype=torch.bool, device=legal.device)
    certain[image[chosen], legal[chosen]] = True
    return certain


def _check_places(
    sums: Tensor, legal: Tensor, image: Tensor, home: Tensor, cells: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Which colours' homes are near to each region, and whether its own colour's is (fact 3).

    Args:
        home: float64 [125, D] of every legal colour, in cells; infinitely far if it has none.
        size: of the picture, (h, w).

    Returns:
        near: bool [R, 125]. placed: bool [R], or all regions of its colour together are.
    """
    colour = image * len(home) + legal
    together = sum_by(colour, int(colour.max()) + 1, sums.t()).t()
    near = _is_near(_locate(sums, cells, size), home)
    fits = near | _is_near(_locate(together, cells, size), home)[colour]
    return near, fits.gather(1, legal[:, None])[:, 0]


def _correct_colours(
    mean: Tensor, legal: Tensor, placed: Tensor, allowed: Tensor
) -> tuple[Tensor, Tensor]:
    """Give regions out of place the nearest of the colours allowed to each, bool [R, 125].

    Returns:
        legal: int64 [R]. placed: bool [R], whether it is in place, or has been corrected.
    """
    colours = legal_colours(mean.device).double()
    distance = torch.cdist(mean, colours, compute_mode="donot_use_mm_for_euclid_dist")
    best = distance.masked_fill(~allowed, torch.inf).min(1)
    moved = ~placed & (best.values < DRIFT)
    return torch.where(moved, best.indices, legal), placed | moved


def _locate(sums: Tensor, cells: int, size: tuple[int, int]) -> Tensor:
    """Row and column of the centre, and side of a square as large, in cells; float64 [R, 3]."""
    h, w = size
    area = sums[:, 2]
    side = (area / (h * w)).sqrt() * cells
    return torch.stack((sums[:, 0] * cells / h / area, sums[:, 1] * cells / w / area, side), 1)


def _is_near(place: Tensor, home: Tensor) -> Tensor:
    """Whether places [R, 3] lie within a cell of homes [125, 2 or 3], in cells; bool [R, 125]."""
    return (place[:, None, : home.shape[1]] - home).abs().amax(2) < 1.5


def assign_borders(region: Tensor, colour: Tensor) -> Tensor:
    """Give every pixel without a region to one in sight, by colour (fact 4).

    Args:
        region: int64 [B, H, W], -1 without; each image has at least one region.
        colour: float [B, 3, H, W] in whole 1 / UNIT levels.

    Returns:
        int64 [B, H, W], all >= 0.
    """
    b, h, w = region.shape
    channels = colour.permute(1, 0, 2, 3).reshape(3, -1)
    flat = region.view(-1).clone()
    todo = (flat < 0).nonzero()[:, 0]
    source = region.view(-1)
    best = torch.full_like(todo, torch.inf, dtype=torch.float)
    pick = torch.full_like(todo, -1)
    several = torch.zeros_like(todo, dtype=torch.bool)
    for radius in RINGS_PX:
        open_ = (~several).nonzero()[:, 0]
        at = todo[open_]
        y, x, base = at // w % h, at % w, at - at % (h * w)
        here = channels[:, at]
        near, who, two = best[open_], pick[open_], several[open_]
        side = round(0.7 * radius)
        for dy, dx in (
            (0, radius), (radius, 0), (0, -radius), (-radius, 0),
            (side, side), (side, -side), (-side, side), (-side, -side),
        ):  # fmt: skip
            there = base + (y + dy).clamp(0, h - 1) * w + (x + dx).clamp(0, w - 1)
            other = source[there]
            distance = sum_channels((channels[:, there] - here)[None])[0]
            two |= (other >= 0) & (who >= 0) & (other != who)
            nearer = (other >= 0) & (distance < near)
            near = torch.where(nearer, distance, near)
            who = torch.where(nearer, other, who)
        best[open_], pick[open_], several[open_] = near, who, two
    flat[todo] = pick
    return _flood(flat.view(b, h, w))


def _flood(region: Tensor) -> Tensor:
    """Grow regions, a pixel per round, over what no ring has reached."""
    while bool((region < 0).any()):
        grown = F.pad(region, (1, 1, 1, 1), value=-1)
        around = (grown[:, :-2, 1:-1], grown[:, 2:, 1:-1], grown[:, 1:-1, :-2], grown[:, 1:-1, 2:])
        reach = torch.stack(around).amax(0)
        region = torch.where(region < 0, reach, region)
    return region


def fill_holes(entity: Tensor, colour: Tensor) -> Tensor:
    """Give black regions inside one entity, and at most ``HOLE`` of its size, to that entity.

    Args:
        entity: int64 [B, H, W], a full partition. colour: int64 [E], legal colours, 0 is black.

    Returns:
        int64 [B, H, W]; an entity may be left without pixels.
    """
    black = colour[entity] == 0
    if not bool(black.any()):
        return entity
    part = label_regions(torch.where(black, entity, -1))
    parts = int(part.max()) + 1
    one, two = list_contacts(part)
    inside = torch.where(part.view(-1)[one] >= 0, one, two)
    outside = one + two - inside
    hole, host = part.view(-1)[inside], entity.view(-1)[outside]
    low = torch.full((parts,), len(colour), device=part.device).scatter_reduce(
        0, hole, host, "amin"
    )
    high = torch.full((parts,), -1, device=part.device).scatter_reduce(0, hole, host, "amax")
    size = torch.bincount(part.view(-1) + 1, minlength=parts + 1)[1:]
    room = torch.bincount(entity.view(-1), minlength=len(colour))
    edge = torch.zeros(parts + 1, dtype=torch.bool, device=part.device)
    for side in (part[:, 0], part[:, -1], part[..., 0], part[..., -1]):
        edge[side.reshape(-1) + 1] = True
    filled = (low == high) & ~edge[1:] & (size <= HOLE * room[high.clamp(min=0)])
    new = torch.where(filled, high, -1)[part.clamp(min=0)]
    return torch.where((part >= 0) & (new >= 0), new, entity)
