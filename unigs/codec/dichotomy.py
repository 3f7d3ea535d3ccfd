"""Colormap -> clusters: the paper's progressive dichotomy (Section 3.2, Eqs. 5-7), batched.

In: a uint8 colormap. Out: the number of its cluster for every pixel. Stands at the start of
:mod:`unigs.codec.decode`; :mod:`unigs.codec.refine` turns clusters into entities.

A cluster is split in two by 2-means until the mean plain L2 distance of its pixels to their mean is
below ``delta`` (the printed square of Eq. 7 contradicts the text). Features depend on the colour
only, so distinct colours with counts stand for the pixels, and the clusters of one depth of all
images are split together. Features are snapped to a grid of 2**-14: sums in float64 are then exact,
so that no order of summation, batch or device changes a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from kornia.color import rgb_to_lab
from torch import Tensor

Features = Literal["rgb+lab", "rgb", "lab"]
MAX_ROUNDS = 300


@dataclass(frozen=True, slots=True, eq=False)
class Colours:
    """The distinct colours of a batch.

    Attributes:
        rgb: uint8 [U, 3]. image: int64 [U], the image it is found in. count: float64 [U] pixels.
        pixel: int64 [B, H, W], the place in this list of each pixel's colour.
    """

    rgb: Tensor
    image: Tensor
    count: Tensor
    pixel: Tensor


def collect_colours(colormap: Tensor) -> Colours:
    """List the distinct colours of each image of uint8 [B, 3, H, W] with their counts."""
    b, _, h, w = colormap.shape
    wide = colormap.long()
    code = (wide[:, 0] << 16) | (wide[:, 1] << 8) | wide[:, 2]
    code |= torch.arange(b, device=colormap.device)[:, None, None] << 24
    code, pixel, count = code.reshape(-1).unique(return_inverse=True, return_counts=True)
    rgb = torch.stack((code >> 16, code >> 8, code), -1).bitwise_and(255).to(torch.uint8)
    return Colours(rgb, code >> 24, count.double(), pixel.view(b, h, w))


def colour_features(rgb: Tensor, features: Features = "rgb+lab") -> Tensor:
    """Eq. 5: RGB (0..255) and CIE Lab of uint8 [U, 3], float64 [U, 3 or 6] on the exact grid."""
    with torch.autocast(rgb.device.type, enabled=False):
        unit = rgb.t().float()[:, None] / 255  # [3, 1, U]
        lab = rgb_to_lab(unit)[:, 0].t().double() if "lab" in features else None
    parts = [rgb.double()] if "rgb" in features else []
    return snap(torch.cat(parts + ([lab] if lab is not None else []), 1))


def snap(values: Tensor) -> Tensor:
    """Round float64 to multiples of 2**-14, far below float32's own error in Lab."""
    return (values * 2**14).round() / 2**14


def sum_by(group: Tensor, groups: int, values: Tensor) -> Tensor:
    """Sum rows of float64 [n] or [n, F] by group; exact, so deterministic, for snapped values."""
    if values.dim() == 1:
        out = torch.zeros(groups, dtype=values.dtype, device=values.device)
        return out.scatter_add_(0, group, values)
    return torch.stack([sum_by(group, groups, column) for column in values.unbind(1)], 1)


def dichotomise(features: Tensor, count: Tensor, image: Tensor, delta: float = 10) -> Tensor:
    """Split until every cluster is tight (Eqs. 6-7).

    Args:
        features: float64 [U, F], snapped. count: float64 [U] pixels of each colour.
        image: int64 [U], ascending; clusters never span images.
        delta: the largest mean distance of a cluster's pixels to their mean, exclusive, > 0.

    Returns:
        int64 [U], cluster numbers without gaps over the whole batch.
    """
    leaf = torch.zeros_like(image)
    leaves = 0
    items = torch.arange(len(image), device=image.device)
    cluster = image.unique_consecutive(return_inverse=True)[1]
    while len(items):
        points, weight = features[items], count[items]
        groups = int(cluster.max()) + 1
        size = sum_by(cluster, groups, weight)
        mean = sum_by(cluster, groups, weight[:, None] * points) / size[:, None]
        distance = snap((points - mean[cluster]).norm(dim=1))
        tight = sum_by(cluster, groups, weight * distance) < delta * size
        number = leaves - 1 + tight.cumsum(0)
        done = tight[cluster]
        leaf[items[done]] = number[cluster[done]]
        leaves += int(tight.sum())
        items, cluster = items[~done], cluster[~done]
        if len(items):
            side = split_in_two(features[items], count[items], cluster, groups)
            cluster = (2 * cluster + side).unique(return_inverse=True)[1]
    return leaf


def split_in_two(points: Tensor, weight: Tensor, cluster: Tensor, groups: int) -> Tensor:
    """One fixed point of 2-means per cluster, all clusters at once; bool [n]."""
    size = sum_by(cluster, groups, weight)
    total = sum_by(cluster, groups, weight[:, None] * points)
    mean = total / size.clamp(min=1)[:, None]
    spread = sum_by(cluster, groups, weight[:, None] * snap((points - mean[cluster]).square()))
    axis = spread.argmax(1)[cluster][:, None]
    side = (points.gather(1, axis) > mean[cluster].gather(1, axis))[:, 0]
    for _ in range(MAX_ROUNDS):
        upper = side.double() * weight
        n1 = sum_by(cluster, groups, upper)
        s1 = sum_by(cluster, groups, upper[:, None] * points)
        c1, c0 = s1 / n1[:, None], (total - s1) / (size - n1)[:, None]
        normal = c1 - c0
        middle = ((c1 + c0) / 2 * normal).sum(1)
        moved = (points * normal[cluster]).sum(1) > middle[cluster]
        if torch.equal(moved, side):
            break
        side = moved
    return side


def split_by_means(points: Tensor, count: Tensor, image: Tensor, clusters: list[int]) -> Tensor:
    """K-means per image (the ablation of Table 8), from centres farthest apart; int64 [U].

    Args:
        points: float64 [U, F], snapped. count: float64 [U]. image: int64 [U], ascending.
        clusters: K of each image; an image with fewer distinct colours gets one cluster per colour.
    """
    numbers = []
    first = 0
    for number, wanted in enumerate(clusters):
        own = image == number
        part, weight = points[own], count[own]
        centre = (weight[:, None] * part).sum(0, keepdim=True) / weight.sum()
        apart = torch.full_like(weight, torch.inf)
        chosen = []
        for _ in range(min(wanted, len(part))):
            apart = torch.minimum(apart, (part - centre[-1]).square().sum(1))
            chosen.append(part[apart.argmax()])
            centre = torch.stack(chosen)
            if len(chosen) == 1:
                apart.fill_(torch.inf)
        side = torch.full_like(weight, -1, dtype=torch.long)
        for _ in range(MAX_ROUNDS):
            moved = torch.cdist(part, centre, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
            if torch.equal(moved, side):
                break
            side = moved
            size = sum_by(side, len(centre), weight)
            mean = sum_by(side, len(centre), weight[:, None] * part) / size.clamp(min=1)[:, None]
            centre = torch.where(size[:, None] > 0, mean, centre)
        numbers.append(side + first)
        first += len(centre)
    return torch.cat(numbers).unique(return_inverse=True)[1]
