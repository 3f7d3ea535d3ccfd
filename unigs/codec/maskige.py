"""Class map <-> maskige: a label map as an RGB picture, which GSS generates (arXiv 2303.11316).

In: classes, ints [B, H, W] in 0..K - 1, and a palette, uint8 [K, 3]. Out: uint8 [B, 3, H, W], and
back. Linear in the one-hot classes c: x = c beta, beta the palette (Section 3). Its inverse is the
nearest colour (:func:`read_maskige`, as the paper's code has it) or the paper's least squares
(:func:`solve_maskige`). Stands between class maps and the autoencoder of ``systems.gss``. No
weights; on the maps' device. There is no ignored class: GSS fills such pixels before it paints.

Palettes follow the maximal distance assumption: what reads well after an autoencoder are colours
far apart, and none near grey, which the paper's code says are read badly.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from unigs.records import UnigsError
from unigs.seeds import rng

MOST_COLOURS = 512
"""Of a palette: beyond it, the jitter of a lattice could make two colours equal."""

GREY, GREY_RADIUS = 128, 48
"""No colour of ``farthest_colours`` lies nearer to (128, 128, 128)."""

CANDIDATE_STEP = 17
"""Levels between the colours to choose from; divides 255, so that the corners are among them."""
NUDGES = (32, 16, 8, 4, 2, 1)
"""How far a chosen colour is moved, coarse to fine, at most ``ROUNDS`` times each."""
ROUNDS = 20
REPULSION = 16
"""Colours repel each other as their squared distance to the minus this: nearly the nearest only."""

ADE20K_LATTICE = ((15, 51), (16, 40), (17, 45))
"""First level and step of red, green and blue of the 5 x 6 x 5 colours of the paper's code."""
JITTER = 15

CHUNK = 2**22
"""Distances of pixels to colours that are held at a time."""


class MaskigeError(UnigsError):
    """Classes, colours or pictures that do not fit each other."""


def farthest_colours(count: int) -> Tensor:
    """Colours as far apart in L2 as we can put them, none greyish (Section 3).

    Farthest-point selection on a coarse lattice, then each colour moves where the others push it.

    Args:
        count: colours, 1..512. 150 take about two seconds.

    Returns:
        uint8 [count, 3], the same at every call.

    Raises:
        MaskigeError: count out of range.

    Example:
        >>> least_distance(farthest_colours(8))  # the corners of the cube
        255.0
    """
    _check_count(count, "farthest_colours")
    colours = _select_farthest(count)
    for step in NUDGES:
        for _ in range(ROUNDS):
            if not _nudge(colours, step):
                break
    return colours.to(torch.uint8)


def _select_farthest(count: int) -> Tensor:
    """Each colour the candidate farthest from all before it, int64 [count, 3]."""
    levels = torch.arange(0, 256, CANDIDATE_STEP)
    candidates = torch.cartesian_prod(levels, levels, levels)
    # From an edge of the cube, which ends better than from a corner at 18 to 20 colours. What lies
    # in the grey ball leaves it with the first nudge, which is longer than its radius.
    chosen = [candidates[len(candidates) // 2]]
    distance = _square_distances(candidates, chosen[0])
    for _ in range(count - 1):
        chosen.append(candidates[distance.argmax()])
        distance = torch.minimum(distance, _square_distances(candidates, chosen[-1]))
    return torch.stack(chosen)


def _nudge(colours: Tensor, step: int) -> bool:
    """Move each colour of int64 [K, 3] in turn, in place, to its best neighbour; if any moved."""
    around = step * torch.cartesian_prod(*[torch.tensor([0, -1, 1])] * 3)  # first: stay
    moved = False
    for k in range(len(colours)):
        places = (colours[k] + around).clamp(0, 255)  # [27, 3]
        distance = _square_distances(places[:, None], colours).double()
        distance[:, k] = torch.inf
        push = (distance.clamp(min=0.5) / GREY**2).pow(-REPULSION).sum(1)
        push[_is_grey(places)] = torch.inf
        best = int(push.argmin())
        moved |= best > 0
        colours[k] = places[best]
    return moved


def _is_grey(colours: Tensor) -> Tensor:
    """Which of int [..., 3] lie too near to grey."""
    return (colours - GREY).square().sum(-1) < GREY_RADIUS**2


def _square_distances(colours: Tensor, other: Tensor) -> Tensor:
    return (colours - other).square().sum(-1)


def lattice_colours(count: int, seed: int = 0) -> Tensor:
    """The palette of the paper's code: a lattice of colours, each channel jittered by up to 15.

    150 are its 5 x 6 x 5 colours for ADE20K. For other counts the lattice is the one with the
    shortest longest side, from level 15 to 240, whose first colours are left out if it has more.

    Args:
        count: colours, 1..512.
        seed: of the jitter.

    Returns:
        uint8 [count, 3], distinct.

    Raises:
        MaskigeError: count out of range.
    """
    _check_count(count, "lattice_colours")
    sides = _choose_sides(count)
    axes = [torch.linspace(15, 240, side).round().long() for side in sides]
    if sides == (5, 6, 5):
        axes = [
            start + step * torch.arange(side) for (start, step), side in zip(ADE20K_LATTICE, sides)
        ]
    colours = torch.cartesian_prod(*axes).view(-1, 3)[-count:]
    jitter = rng(seed, 0, "lattice").integers(-JITTER, JITTER + 1, (count, 3))
    return (colours + torch.from_numpy(jitter)).clamp(0, 255).to(torch.uint8)


def _choose_sides(count: int) -> tuple[int, int, int]:
    """Sides of red, green and blue: the longest as short as can be, then the fewest colours."""
    sides = itertools.combinations_with_replacement(range(1, 9), 3)
    enough = [s for s in sides if s[0] * s[1] * s[2] >= count]
    least, middle, longest = min(enough, key=lambda s: (s[2], s[0] * s[1] * s[2]))
    return middle, longest, least


def random_colours(count: int, seed: int) -> Tensor:
    """Distinct colours drawn at random, the baseline FF-R of the paper.

    Args:
        count: colours, 1..512.
        seed: of the draw.

    Returns:
        uint8 [count, 3].

    Raises:
        MaskigeError: count out of range.
    """
    _check_count(count, "random_colours")
    code = torch.from_numpy(rng(seed, 0, "maskige").choice(2**24, count, replace=False))
    return torch.stack((code >> 16, code >> 8 & 255, code & 255), 1).to(torch.uint8)


def least_distance(colours: Tensor) -> float:
    """L2 distance of the two nearest colours of a palette [K, 3]; infinite for one colour."""
    pairs = _square_distances(colours.long()[:, None], colours.long()).double()
    return float(pairs.fill_diagonal_(torch.inf).min().sqrt())


def paint_maskige(classes: Tensor, colours: Tensor) -> Tensor:
    """Give each pixel the colour of its class: x = c beta (Section 3).

    Args:
        classes: ints [B, H, W] in 0..K - 1.
        colours: uint8 [K, 3], distinct.

    Returns:
        uint8 [B, 3, H, W].

    Raises:
        MaskigeError: classes out of range or of another shape or dtype; wrong or equal colours.

    Example:
        >>> paint_maskige(torch.tensor([[[1]]]), farthest_colours(2)).shape
        torch.Size([1, 3, 1, 1])
    """
    _check_colours(colours, "paint_maskige")
    _check_classes(classes, len(colours))
    return colours.to(classes.device)[classes.long()].permute(0, 3, 1, 2).contiguous()


def read_maskige(pixels: Tensor, colours: Tensor) -> Tensor:
    """The class of the nearest colour in L2; exact for every pixel off by less than half the least
    distance of two colours.

    Args:
        pixels: uint8, or float in 0..255, [B, 3, H, W].
        colours: uint8 [K, 3], distinct.

    Returns:
        int64 [B, H, W] in 0..K - 1; the lower class of two equally near.

    Raises:
        MaskigeError: pixels of another shape, dtype or range; wrong or equal colours.
    """
    values = _to_floats(pixels, colours, "read_maskige")
    flat = values.movedim(1, 0).flatten(1)  # [3, P]
    parts = flat.split(max(1, CHUNK // len(colours)), 1)
    return torch.cat([_find_nearest(part, colours) for part in parts]).view_as(values[:, 0])


def _find_nearest(pixels: Tensor, colours: Tensor) -> Tensor:
    """Number of the nearest colour of float [3, P], int64 [P]; the first of two equally near."""
    away = pixels[:, None] - colours.to(pixels).t()[..., None]  # [3, K, P]
    # Squares of whole numbers are exact in float32, so that ties are ties.
    return away.square().sum(0).argmin(0)


def solve_maskige(pixels: Tensor, colours: Tensor) -> Tensor:
    """Scores of the classes by least squares: c = x beta^+, with the pseudo-inverse (Section 3).

    Beta has rank 3 at most. Up to three independent colours give back the one-hot classes; of more,
    this is the shortest of all c with c beta = x, and its largest entry need not be the class.

    Args:
        pixels: uint8, or float in 0..255, [B, 3, H, W].
        colours: uint8 [K, 3], distinct.

    Returns:
        float32 [B, K, H, W], about 0 to 1; linear in the pixels.

    Raises:
        MaskigeError: as in :func:`read_maskige`.
    """
    values = _to_floats(pixels, colours, "solve_maskige")
    inverse = torch.linalg.pinv(colours.double()).to(values)[:, :, None, None]  # [3, K, 1, 1]
    red, green, blue = values[:, :, None].unbind(1)  # [B, 1, H, W]
    return red * inverse[0] + green * inverse[1] + blue * inverse[2]


def _check_count(count: int, where: str) -> None:
    if not 1 <= count <= MOST_COLOURS:
        raise MaskigeError(f"expected 1..{MOST_COLOURS} colours, got {count}, in {where}")


def _check_colours(colours: Tensor, where: str) -> None:
    if colours.dim() != 2 or colours.shape[1] != 3 or not len(colours):
        raise MaskigeError(f"expected colours [K, 3], got {list(colours.shape)}, in {where}")
    if colours.dtype != torch.uint8:
        raise MaskigeError(f"expected uint8 colours, got {colours.dtype}, in {where}")
    rows = colours.tolist()
    for k, colour in enumerate(rows):
        if (first := rows.index(colour)) < k:
            raise MaskigeError(
                f"expected distinct colours, got {tuple(colour)} for classes {first} and {k},"
                f" in {where}"
            )


def _check_classes(classes: Tensor, count: int) -> None:
    where = "in paint_maskige"
    if classes.dim() != 3:
        raise MaskigeError(f"expected classes [B, H, W], got {list(classes.shape)}, {where}")
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise MaskigeError(f"expected classes of integers, got {classes.dtype}, {where}")
    if not classes.numel():
        return
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= count:
        raise MaskigeError(
            f"expected classes in 0..{count - 1}, one per colour, got {low}..{high}, {where};"
            " ignored pixels must be filled first"
        )


def _to_floats(pixels: Tensor, colours: Tensor, where: str) -> Tensor:
    """Check a picture and its palette; float32 [B, 3, H, W]."""
    _check_colours(colours, where)
    if pixels.dim() != 4 or pixels.shape[1] != 3:
        raise MaskigeError(f"expected pixels [B, 3, H, W], got {list(pixels.shape)}, in {where}")
    if pixels.dtype == torch.uint8:
        return pixels.float()
    if not pixels.is_floating_point():
        raise MaskigeError(f"expected uint8 or float pixels, got {pixels.dtype}, in {where}")
    values = pixels.float()
    low, high = (float(values.min()), float(values.max())) if values.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 255):  # a NaN fails both
        raise MaskigeError(f"expected pixels in 0..255, got {low}..{high}, in {where}")
    return values
