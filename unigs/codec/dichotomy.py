"""Colormap -> clusters: the paper's progressive dichotomy (Section 3.2, Eqs. 5-7), exact, batched.

In: the distinct colours of a batch with their features. Out: the number of its cluster for each.
Used by :mod:`unigs.codec.decode` for the paper's results and ablations.

A cluster is split in two by 2-means until the mean plain L2 distance of its pixels to their mean is
below ``delta`` (the printed square of Eq. 7 contradicts the text). 2-means starts from the axis on
which a cluster spreads most, runs on the means of its *pieces*, what it owns of each cube of
8 x 8 x 8 colours, and from there on all its colours to a fixed point.

All clusters of one depth of all images are split together. Sums are exact
(:mod:`unigs.codec.colours`), so results depend on no order, batch or device. The host waits for the
device once per depth and once per ``ROUNDS`` rounds of 2-means, however many clusters there are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unigs.codec.colours import Colours, snap, sum_by

ROUNDS = 3
"""Rounds of 2-means between two looks at who has settled; a settled cluster repeats itself."""
LANES = 16
"""Adding to one place time and again is slow: few sums are spread over so many places."""
MAX_LOOKS = 100
"""2-means ends by itself; this only guards against a cycle by rounding."""
TIE = 1e-7
"""A colour as near to both centres belongs to the lower one; rounding must not decide."""


def dichotomise(colours: Colours, points: Tensor, delta: float = 10) -> Tensor:
    """Split until every cluster is tight (Eqs. 6-7).

    Args:
        colours: the distinct colours. points: float64 [F, U], their snapped features.
        delta: the largest mean distance of a cluster's pixels to their mean, exclusive, > 0.

    Returns:
        int64 [U], cluster numbers without gaps over the whole batch; none spans two images.
    """
    leaf, leaves = torch.zeros_like(colours.image), colours.image.new_zeros(())
    alive = torch.arange(len(leaf), device=leaf.device)
    moments = torch.cat((colours.count[None], colours.count * points))  # [1 + F, n]
    cluster, piece = colours.image, colours.cube
    clusters, pieces = (torch.stack((cluster[-1], piece[-1])) + 1).tolist()
    while True:
        tight = find_tight(moments, cluster, clusters, delta)
        leaf[alive] = _pick(
            leaves + tight.cumsum(0) - 1, cluster
        )  # of the others, until they are tight
        leaves = leaves + tight.sum()
        open_ = _pick(~tight, cluster)
        piece = _part_pieces(piece, pieces, cluster, clusters)
        piece, pieces = _renumber(piece, pieces + len(piece), open_)
        number, clusters, pieces = torch.stack((open_.sum(), (~tight).sum(), pieces)).tolist()
        if not number:
            return leaf
        own = torch.nonzero_static(open_, size=number)[:, 0]
        alive, moments, piece = _pick(alive, own), _pick(moments, own), _pick(piece, own)
        cluster = _pick((~tight).cumsum(0) - 1, _pick(cluster, own))
        side = split_clusters(moments, cluster, clusters, piece, pieces)
        cluster, clusters = 2 * cluster + side, 2 * clusters
        piece, pieces = 2 * piece + side, 2 * pieces


def find_tight(moments: Tensor, cluster: Tensor, clusters: int, delta: float) -> Tensor:
    """Eq. 7: which clusters' mean distance of pixels to the mean is below ``delta``; bool [K]."""
    total = sum_by(cluster, clusters, moments)
    centre = total[1:] / total[0]
    way = moments[1:] / moments[0] - _pick(centre, cluster)
    distance = moments[0] * snap(way.square_().sum(0).sqrt_())
    return sum_by(cluster, clusters, distance) < delta * total[0]


def _part_pieces(piece: Tensor, pieces: int, cluster: Tensor, clusters: int) -> Tensor:
    """Make every colour a piece of its own in clusters that have a single piece."""
    least = torch.full((clusters,), pieces, device=piece.device)
    least = least.scatter_reduce(0, cluster, piece, "amin")
    most = torch.zeros_like(least).scatter_reduce(0, cluster, piece, "amax")
    colour = torch.arange(len(piece), device=piece.device)
    return torch.where(_pick(least == most, cluster), pieces + colour, piece)


def _renumber(number: Tensor, limit: int, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Close the gaps in the numbers of what is kept; and how many there are, on the device."""
    used = torch.zeros(limit, dtype=torch.long, device=number.device)
    place = used.scatter_reduce(0, number, kept.long(), "amax").cumsum(0)
    return _pick(place, number) - 1, place[-1]


def split_clusters(
    moments: Tensor, cluster: Tensor, clusters: int, piece: Tensor, pieces: int
) -> Tensor:
    """Eq. 6: divide every cluster at a fixed point of 2-means over its pixels; bool [n], the side.

    Args:
        moments: float64 [1 + F, n], (count, count x point) of each colour.
        cluster: int64 [n] in 0..clusters-1. piece: int64 [n] in 0..pieces-1, within a cluster.
    """
    sums = sum_by(piece, pieces, moments)
    home = cluster.new_zeros(pieces).scatter_(0, piece, cluster)
    halves = _settle(sums, home, _start(sums, home, clusters))
    halves = _settle(moments, cluster, halves)
    return _choose_side(moments, cluster, halves)


def _start(sums: Tensor, home: Tensor, clusters: int) -> Tensor:
    """First halves, at the mean of the axis on which the pieces' means spread most."""
    total = sum_by(home, clusters, sums)
    way = sums[1:] / sums[0] - _pick(total[1:] / total[0], home)
    spread = sum_by(home, clusters, (way.square() * sums[0] * 256).round_())
    side = way.gather(0, spread.argmax(0)[None, home])[0] > TIE / 100
    return _sum_halves(sums, home, side, clusters)


def _settle(moments: Tensor, group: Tensor, halves: Tensor) -> Tensor:
    """2-means: move planes until the sides they give repeat the sums of both halves.

    Args:
        moments: float64 [1 + F, m]. group: int64 [m], the cluster of each.
        halves: float64 [1 + F, 2K], the sums of K lower halves and K upper ones, not empty.

    Returns:
        The halves that repeat themselves.
    """
    clusters = halves.shape[1] // 2
    settled = torch.zeros_like(halves)  # sums of the clusters whose colours are left out
    for _ in range(MAX_LOOKS):
        for _ in range(ROUNDS):
            before = halves
            side = _choose_side(moments, group, before)
            halves = settled + _sum_halves(moments, group, side, clusters)
        changed = (halves != before).view(-1, 2, clusters).any(0).any(0)
        own = _pick(changed, group).nonzero()[:, 0]
        if not len(own):
            break
        if 2 * len(own) < len(group):
            settled = torch.where(changed.repeat(2), 0, halves)
            moments, group = _pick(moments, own), _pick(group, own)
    return halves


def _pick(values: Tensor, place: Tensor) -> Tensor:
    """Entries [..., m] of [..., n]; on a CPU several times as fast as ``values[..., place]``."""
    return values.gather(-1, place.expand(*values.shape[:-1], -1))


def _sum_halves(moments: Tensor, group: Tensor, side: Tensor, clusters: int) -> Tensor:
    """Sums of the lower and the upper half of each cluster, float64 [1 + F, 2K]; exact."""
    lanes = max(1, LANES // clusters)
    lane = torch.arange(len(group), device=group.device) % lanes
    column = (side * clusters + group) * lanes + lane
    sums = sum_by(column, 2 * clusters * lanes, moments)
    return sums.view(len(sums), -1, lanes).sum(-1)


def _choose_side(moments: Tensor, group: Tensor, halves: Tensor) -> Tensor:
    """Whether colours lie above the plane half way between their cluster's centres; bool [m]."""
    low, high = (halves[1:] / halves[0]).chunk(2, 1)
    normal = high - low
    offset = ((high + low) * normal).sum(0, keepdim=True) / -2 - TIE
    plane = torch.cat((offset, normal))  # [1 + F, K]
    return _pick(plane, group).mul_(moments).sum(0) > 0
