"""Colormap -> clusters: plain k-means, the dichotomy's rival in Table 8 of the paper.

In: the distinct colours of a batch with their features, and the number of clusters of each image.
Out: the number of its cluster for each colour. Used by :mod:`unigs.codec.decode`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unigs.codec.colours import Colours, sum_by

MAX_ROUNDS = 300
"""K-means ends by itself; this only guards against a cycle by rounding."""


def split_by_means(colours: Colours, points: Tensor, clusters: Sequence[int]) -> Tensor:
    """K-means in each image, from centres farthest apart.

    Args:
        colours: the distinct colours. points: float64 [F, U], their snapped features.
        clusters: K of each image; an image with fewer distinct colours gets one cluster per colour.

    Returns:
        int64 [U], cluster numbers without gaps over the whole batch; none spans two images.
    """
    leaf, first = torch.zeros_like(colours.image), 0
    for image, wanted in enumerate(clusters):
        own = colours.image == image
        part, weight = points[:, own].t(), colours.count[own]
        centre = _choose_centres(part, weight, wanted)
        leaf[own] = first + _settle(part, weight, centre)
        first += len(centre)
    return leaf.unique(return_inverse=True)[1]


def _choose_centres(points: Tensor, weight: Tensor, wanted: int) -> Tensor:
    """The point farthest from the mean, then again and again the one farthest from those chosen."""
    mean = (weight[:, None] * points).sum(0) / weight.sum()
    chosen = points[(points - mean).square().sum(1).argmax()][None]
    apart = (points - chosen[0]).square().sum(1)
    for _ in range(min(wanted, len(points)) - 1):
        chosen = torch.cat((chosen, points[apart.argmax()][None]))
        apart = torch.minimum(apart, (points - chosen[-1]).square().sum(1))
    return chosen


def _settle(points: Tensor, weight: Tensor, centre: Tensor) -> Tensor:
    """The nearest of the centres of points [n, F], once it repeats itself; int64 [n]."""
    side = torch.full_like(weight, -1, dtype=torch.long)
    for _ in range(MAX_ROUNDS):
        moved = torch.cdist(points, centre, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        if torch.equal(moved, side):
            break
        side = moved
        size = sum_by(side, len(centre), weight)
        mean = sum_by(side, len(centre), (weight[:, None] * points).t()) / size.clamp(min=1)
        centre = torch.where(size[:, None] > 0, mean.t(), centre)
    return side
