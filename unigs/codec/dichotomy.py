"""Colormap -> clusters: the paper's progressive dichotomy (Section 3.2, Eqs. 5-7), exact, batched.

In: a uint8 colormap. Out: the number of its cluster for every distinct colour. Used by
:mod:`unigs.codec.decode` without refinement, for the paper's results and ablations.

A cluster is split in two by 2-means until the mean plain L2 distance of its pixels to their mean is
below ``delta`` (the printed square of Eq. 7 contradicts the text). Exact means: a split is a fixed
point of 2-means over all pixels, a stop obeys the rule on all pixels. Fast without losing that:

- Features depend on the colour only, so distinct colours with counts stand for the pixels.
- All clusters of one depth of all images are split together.
- Colours are held in *fragments*: what a cluster owns of a cube of 8 x 8 x 8 colours. A fragment
  knows its exact sums and its radius. Where a plane, or a mean distance, is decided by these alone,
  its colours are never looked at; where it is not, they are, one by one, and a fragment that the
  plane cuts becomes two. 2-means first runs on the fragments' means, then on all colours.
- Sums of features are exact (:mod:`unigs.codec.colours`); those that are not serve as bounds only,
  with a margin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unigs.codec.colours import Colours, snap, sum_by

MAX_ROUNDS = 300
"""2-means ends by itself; this only guards against a cycle by rounding."""
MARGIN = 1e-3
"""Added to every bound, in units of the features: far above any rounding."""
TIE = 1e-7
"""A colour as near to both centres belongs to the lower one; rounding must not decide."""
REACH = 2.0
"""Colours this near to the first plane are kept at hand while it moves."""
FEW_COLOURS = 32_768
"""Up to so many colours in all, every one is looked at."""


@dataclass(slots=True, eq=False)
class Fragments:
    """The colours of a batch in fragments; see the module's docstring.

    Attributes:
        points: float64 [F, U], snapped. count: float64 [U] pixels. owner: int64 [U], the fragment.
        sums: float64 [1 + F, n], pixels and summed points of each fragment, exact.
        radius: float64 [n], to the farthest colour. scatter: float64 [n], mean square of distance.
        pool: int64 [u], the colours whose clusters are still divided.
    """

    points: Tensor
    count: Tensor
    owner: Tensor
    sums: Tensor
    radius: Tensor
    scatter: Tensor
    pool: Tensor

    @staticmethod
    def of(points: Tensor, count: Tensor, owner: Tensor) -> Fragments:
        number = int(owner[-1]) + 1
        moments = torch.cat((count[None], count * points))
        sums = sum_by(owner, number, moments)
        none, pool = points.new_zeros(number), torch.arange(len(owner), device=owner.device)
        held = Fragments(points, count, owner, sums, none, none.clone(), pool)
        held.measure(pool)
        return held

    @property
    def means(self) -> Tensor:
        return self.sums[1:] / self.sums[0]

    def measure(self, colours: Tensor) -> None:
        """Find radius and scatter of the fragments that are made of these colours."""
        owner = self.owner[colours]
        centre = self.sums[1:].index_select(1, owner) / self.sums[0][owner]
        square = (self.points.index_select(1, colours) - centre).square_().sum(0)
        self.radius.index_fill_(0, owner, 0).scatter_reduce_(0, owner, square.sqrt(), "amax")
        self.scatter.index_fill_(0, owner, 0)
        self.scatter.scatter_add_(0, owner, self.count[colours] * square / self.sums[0][owner])

    def retire(self, leaf: Tensor) -> None:
        """Take the colours of fragments that have a leaf, >= 0, out of the pool."""
        self.pool = self.pool[leaf[self.owner[self.pool]] < 0]

    def cut(self, colours: Tensor, side: Tensor) -> Tensor:
        """Divide fragments, all of whose colours are given, by side; the number of new ones.

        The part on side True of a fragment that has both becomes a new fragment at the end.
        """
        old = self.sums.shape[1]
        owner = self.owner[colours]
        upper = sum_by(owner, old, side.double())
        mixed = (upper > 0) & (sum_by(owner, old, (~side).double()) > 0)
        number = torch.where(
            mixed, mixed.cumsum(0) - 1 + old, torch.arange(old, device=side.device)
        )
        moved, stay = colours[side & mixed[owner]], colours[mixed[owner]]
        self.owner[moved] = number[self.owner[moved]]
        new = int(mixed.sum())
        moments = torch.cat((self.count[moved][None], self.count[moved] * self.points[:, moved]))
        extra = sum_by(self.owner[moved] - old, new, moments)
        self.sums = torch.cat((self.sums, extra), 1)
        self.sums[:, :old][:, mixed] -= extra
        self.radius = torch.cat((self.radius, self.radius.new_zeros(new)))
        self.scatter = torch.cat((self.scatter, self.scatter.new_zeros(new)))
        self.measure(stay)
        return mixed


def dichotomise(colours: Colours, points: Tensor, delta: float = 10) -> Tensor:
    """Split until every cluster is tight (Eqs. 6-7).

    Args:
        colours: the distinct colours. points: float64 [F, U], their snapped features.
        delta: the largest mean distance of a cluster's pixels to their mean, exclusive, > 0.

    Returns:
        int64 [U], cluster numbers without gaps over the whole batch; none spans two images.
    """
    held = Fragments.of(points, colours.count, colours.cube.clone())
    leaf = torch.full_like(colours.cube, -1)  # of fragments, then of colours
    leaf = leaf[: held.sums.shape[1]].clone()
    first = torch.searchsorted(colours.cube, torch.arange(len(leaf), device=leaf.device))
    alive = torch.arange(len(leaf), device=leaf.device)  # fragments, sorted by cluster
    cluster = colours.image[first].unique_consecutive(return_inverse=True)[1]
    leaves = 0
    while len(alive):
        tight = find_tight(held, alive, cluster, delta)
        done = tight[cluster]
        leaf[alive[done]] = (leaves - 1 + tight.cumsum(0))[cluster[done]]
        finished = int(tight.sum())
        if finished:
            leaves += finished
            held.retire(leaf)
            alive, cluster = alive[~done], cluster[~done].unique_consecutive(return_inverse=True)[1]
        if len(alive):
            alive, cluster = split_clusters(held, alive, cluster)
            leaf = torch.cat((leaf, leaf.new_full((held.sums.shape[1] - len(leaf),), -1)))
    return leaf[held.owner]


def find_tight(held: Fragments, alive: Tensor, cluster: Tensor, delta: float) -> Tensor:
    """Eq. 7: which clusters' mean distance of pixels to the mean is below ``delta``; bool [K]."""
    clusters = int(cluster[-1]) + 1
    sums = held.sums.index_select(1, alive)
    total = sum_by(cluster, clusters, sums)
    size, centre = total[0], total[1:] / total[0]
    way = sums[1:] / sums[0] - centre.index_select(1, cluster)
    square = way.square_().sum(0)
    # The mean distance of a fragment's pixels is at least that of their mean, at most the root of
    # their mean square.
    bounds = torch.stack((square, square + held.scatter[alive])).sqrt_()
    low, high = sum_by(cluster, clusters, sums[0] * snap(bounds))
    tight = high < (delta - MARGIN) * size
    open_ = ~tight & (low < (delta + MARGIN) * size)
    if bool(open_.any()):
        colours, group = _list_colours(held, alive, cluster, open_[cluster])
        way = held.points.index_select(1, colours) - centre.index_select(1, group)
        distance = held.count[colours] * snap(way.square_().sum(0).sqrt_())
        tight |= open_ & (sum_by(group, clusters, distance) < delta * size)
    return tight


def split_clusters(held: Fragments, alive: Tensor, cluster: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 6: divide every cluster at a fixed point of 2-means over its pixels.

    Args:
        held: the fragments; those that a plane cuts are divided in place.
        alive: int64 [n], fragments sorted by cluster. cluster: int64 [n], without gaps.

    Returns:
        The same two for the clusters of the next depth, twice as many.
    """
    side, spread = _start(held, alive, cluster)
    stuck = spread == 0
    if bool(stuck.any()):
        alive, cluster = _explode(held, alive, cluster, stuck)
        side, spread = _start(held, alive, cluster)
    sums, none = (
        held.sums.index_select(1, alive),
        held.sums.new_zeros(len(held.sums), 2 * len(spread)),
    )
    halves, _ = _settle(sums, cluster, none, _add_halves(none, cluster, side, sums))
    side, colours, colour_side = _split_colours(held, alive, cluster, halves)
    here = torch.full((held.sums.shape[1],), -1, device=alive.device)
    here[alive] = torch.arange(len(alive), device=alive.device)
    side[here[held.owner[colours[colour_side]]]] = True
    mixed = held.cut(colours, colour_side)
    origin = here[mixed.nonzero()[:, 0]]
    side[origin] = False  # what is left of a cut fragment
    made = torch.arange(len(mixed), held.sums.shape[1], device=alive.device)
    half, order = torch.cat((2 * cluster + side, 2 * cluster[origin] + 1)).sort(stable=True)
    return torch.cat((alive, made))[order], half.unique_consecutive(return_inverse=True)[1]


def _start(held: Fragments, alive: Tensor, cluster: Tensor) -> tuple[Tensor, Tensor]:
    """First sides, at the mean of the axis on which fragments' means spread most.

    Returns:
        side: bool [n]. spread: float64 [K], variance times pixels on that axis; 0 if all are alike.
    """
    clusters = int(cluster[-1]) + 1
    sums = held.sums.index_select(1, alive)
    total = sum_by(cluster, clusters, sums)
    way = sums[1:] / sums[0] - (total[1:] / total[0]).index_select(1, cluster)
    spread, axis = sum_by(cluster, clusters, (way.square() * sums[0] * 256).round_()).max(0)
    return way.gather(0, axis[None, cluster])[0] > TIE / 100, spread


def _split_colours(
    held: Fragments, alive: Tensor, cluster: Tensor, halves: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """2-means on all colours from the given halves, looking only at those near the planes.

    Returns:
        side: bool [n] of the fragments looked at as a whole, False for the others.
        colours: int64 [m], all colours of the others. colour_side: bool [m].
    """
    sums = held.sums.index_select(1, alive)
    radius = held.radius[alive] + MARGIN
    low, high = halves.chunk(2, 1)
    centre = (low + high) / (low + high)[0]  # [1 + F, K], first row 1
    way = (sums / sums[0] - centre.index_select(1, cluster)).square_().sum(0).sqrt_() + radius
    extent = torch.zeros_like(centre[0]).scatter_reduce_(0, cluster, way, "amax")
    settled, few = False, len(held.pool) <= FEW_COLOURS
    while not settled:
        plane = _normalise(_find_planes(halves))
        height = (plane.index_select(1, cluster) * sums).sum(0)
        side = height > 0
        inside = height.abs() / sums[0] <= radius + REACH
        if few:
            inside.fill_(True)
        colours, group = _list_colours(held, alive, cluster, inside)
        count = held.count[colours]
        moments = torch.cat((count[None], count * held.points.index_select(1, colours)))
        base = _add_halves(torch.zeros_like(halves), cluster, side, sums * ~inside)
        fence = None if few else (plane, centre, extent)
        halves, settled = _settle(moments, group, base, halves, fence)
    return side & ~inside, colours, _choose_side(moments, group, _find_planes(halves))


def _settle(
    moments: Tensor,
    group: Tensor,
    base: Tensor,
    halves: Tensor,
    fence: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, bool]:
    """2-means: move planes until the sides they give repeat the sums of both halves.

    Args:
        moments: float64 [1 + F, m], (count, count x point). group: int64 [m], the cluster of each.
        base: float64 [1 + F, 2K], sums of what stays on its side: K lower halves, K upper ones.
        halves: float64 [1 + F, 2K], the sums to start from, not empty.
        fence: a plane, the centre and the extent of each cluster. Where a plane has moved more than
            ``REACH`` from it, what stays on its side is no longer known, and the round is not done.

    Returns:
        The halves, and whether they repeat themselves.
    """
    moving = halves.shape[1] // 2
    for _ in range(MAX_ROUNDS):
        plane = _find_planes(halves)
        if fence is not None and bool((_measure_shift(plane, *fence) > REACH).any()):
            return halves, False
        moved = _add_halves(base, group, _choose_side(moments, group, plane), moments)
        changed = (moved != halves).view(len(moved), 2, -1).any(0).any(0)
        halves, still = moved, int(changed.sum())
        if not still:
            break
        if 2 * still < moving:  # most clusters have settled: leave their colours out
            moving, base = still, torch.where(changed.repeat(2), base, halves)
            own = changed[group].nonzero()[:, 0]
            moments, group = moments.index_select(1, own), group[own]
    return halves, True


def _normalise(plane: Tensor) -> Tensor:
    return plane / plane[1:].square().sum(0).sqrt_()


def _measure_shift(plane: Tensor, before: Tensor, centre: Tensor, extent: Tensor) -> Tensor:
    """The most that the distance of any of a cluster's colours from its plane has changed; [K]."""
    change = _normalise(plane).sub_(before)
    turn = change[1:].square().sum(0).sqrt_().mul_(extent)
    return (change * centre).sum(0).abs_().add_(turn)


def _add_halves(base: Tensor, group: Tensor, side: Tensor, moments: Tensor) -> Tensor:
    """Add moments [1 + F, m] to the halves [1 + F, 2K] that their sides say; exact."""
    column = side * (base.shape[1] // 2) + group
    return base.scatter_add(1, column.expand_as(moments), moments)


def _find_planes(halves: Tensor) -> Tensor:
    """The planes half way between two centres each: (-offset, normal), float64 [1 + F, K]."""
    low, high = (halves[1:] / halves[0]).chunk(2, 1)
    normal = high - low
    return torch.cat((((high + low) * normal).sum(0, keepdim=True) / -2 - TIE, normal))


def _choose_side(moments: Tensor, group: Tensor, plane: Tensor) -> Tensor:
    """Whether colours lie above their cluster's plane; bool [m]."""
    return (plane.index_select(1, group).mul_(moments)).sum(0) > 0


def _explode(
    held: Fragments, alive: Tensor, cluster: Tensor, stuck: Tensor
) -> tuple[Tensor, Tensor]:
    """Make every colour of the ``stuck`` clusters a fragment of its own: they lie in one cube."""
    colours, group = _list_colours(held, alive, cluster, stuck[cluster])
    old = held.sums.shape[1]
    made = torch.arange(old, old + len(colours), device=alive.device)
    count = held.count[colours]
    held.owner[colours] = made
    held.sums = torch.cat((held.sums, torch.cat((count[None], count * held.points[:, colours]))), 1)
    zero = torch.zeros_like(count)
    held.radius, held.scatter = torch.cat((held.radius, zero)), torch.cat((held.scatter, zero))
    whole = ~stuck[cluster]
    cluster, order = torch.cat((cluster[whole], group)).sort(stable=True)
    return torch.cat((alive[whole], made))[order], cluster


def _list_colours(
    held: Fragments, alive: Tensor, cluster: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """The colours of chosen fragments, and the cluster of each; int64 [m] twice."""
    home = torch.full((held.sums.shape[1],), -1, device=alive.device)
    home[alive[chosen]] = cluster[chosen]
    group = home[held.owner[held.pool]]
    own = (group >= 0).nonzero()[:, 0]
    return held.pool[own], group[own]


def split_by_means(points: Tensor, count: Tensor, image: Tensor, clusters: list[int]) -> Tensor:
    """K-means per image (the ablation of Table 8), from centres farthest apart; int64 [U].

    Args:
        points: float64 [F, U], snapped. count: float64 [U]. image: int64 [U], ascending.
        clusters: K of each image; an image with fewer distinct colours gets one cluster per colour.
    """
    numbers: list[Tensor] = []
    first = 0
    for number, wanted in enumerate(clusters):
        own = image == number
        part, weight = points[:, own].t(), count[own]
        centre = (weight[:, None] * part).sum(0, keepdim=True) / weight.sum()
        apart = (part - centre).square().sum(1)
        chosen: list[Tensor] = []
        for _ in range(min(wanted, len(part))):
            chosen.append(part[apart.argmax()])
            near = (part - chosen[-1]).square().sum(1)
            apart = near if len(chosen) == 1 else torch.minimum(apart, near)
        centre, side = torch.stack(chosen), torch.full_like(weight, -1, dtype=torch.long)
        for _ in range(MAX_ROUNDS):
            moved = torch.cdist(part, centre, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
            if torch.equal(moved, side):
                break
            side = moved
            size = sum_by(side, len(centre), weight)
            mean = sum_by(side, len(centre), (weight[:, None] * part).t()) / size.clamp(min=1)
            centre = torch.where(size[:, None] > 0, mean.t(), centre)
        numbers.append(side + first)
        first += len(centre)
    return torch.cat(numbers).unique(return_inverse=True)[1]
