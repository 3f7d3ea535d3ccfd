"""Laws of dichotomy and k-means: equal to a per-pixel reference, exact, batch-free, few waits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from unigs.codec import decode_dichotomy, decode_kmeans, dichotomy, encode_colormap
from unigs.codec.colours import collect_colours, colour_features
from unigs.codec.dichotomy import ROUNDS, TIE, dichotomise


def noisy_map(seed: int, size: int = 48, entities: int = 6, sigma: float = 6) -> torch.Tensor:
    """Voronoi cells painted, softened by averaging and noised; uint8 [3, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(entities, 2, generator=generator) * size
    grid = torch.cartesian_prod(torch.arange(size), torch.arange(size)) + 0.5
    labels = torch.cdist(grid, points).argmin(1).view(size, size) + 1
    picture = torch.nn.functional.avg_pool2d(encode_colormap(labels)[None].float(), 5, 1, 2)[0]
    picture = picture + sigma * torch.randn(picture.shape, generator=generator)
    return picture.clamp(0, 255).round().byte()


def pixel_features(colormap: torch.Tensor, features: str) -> np.ndarray:
    """Features of every pixel, [H * W, F], by the codec's own definition of a feature."""
    return colour_features(colormap.reshape(3, -1).t(), features).t().numpy()


def reference(colormap: torch.Tensor, delta: float, features: str = "rgb+lab") -> np.ndarray:
    """The dichotomy, plainly, pixel by pixel: a cluster number for every pixel."""
    points = pixel_features(colormap, features)
    cube = (colormap.reshape(3, -1).numpy() >> 3).astype(np.int64)
    cube = (cube[0] * 32 + cube[1]) * 32 + cube[2]
    own = colormap.reshape(3, -1).numpy().astype(np.int64)
    own = (own[0] * 256 + own[1]) * 256 + own[2]
    leaf = np.zeros(len(points), np.int64)
    leaves, stack = 0, [(np.arange(len(points)), cube)]
    while stack:
        pixels, piece = stack.pop()
        mine = points[pixels]
        distance = np.linalg.norm(mine - mine.mean(0), axis=1)
        if np.round(distance * 4096).mean() / 4096 < delta:  # on the grid of the features
            leaf[pixels], leaves = leaves, leaves + 1
            continue
        if len(np.unique(piece[pixels])) == 1:
            piece = own  # all in one cube: start from single colours, here and below
        centres = starting_centres(mine, piece[pixels])
        while True:
            side = nearer_to_second(mine, centres)
            moved = np.stack([mine[~side].mean(0), mine[side].mean(0)])
            if np.allclose(moved, centres, rtol=0, atol=1e-9):
                break
            centres = moved
        stack += [(pixels[~side], piece), (pixels[side], piece)]
    return leaf


def starting_centres(points: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """2-means over the means of the cluster's parts in cubes of 8 x 8 x 8 colours."""
    _, number, weight = np.unique(piece, return_inverse=True, return_counts=True)
    means = np.stack([np.bincount(number, axis) for axis in points.T], 1) / weight[:, None]
    spread = np.round(256 * weight[:, None] * (means - points.mean(0)) ** 2).sum(0)
    side = (means - points.mean(0))[:, spread.argmax()] > TIE / 100
    while True:
        centres = np.stack([np.average(means[s], 0, weight[s]) for s in (~side, side)])
        moved = nearer_to_second(means, centres)
        if (moved == side).all():
            return centres
        side = moved


def nearer_to_second(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Ties go to the first centre."""
    square = ((points[:, None] - centres) ** 2).sum(-1)
    return square[:, 0] - square[:, 1] > 2 * TIE


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = len(np.unique(np.stack((one.ravel(), other.ravel())), axis=1).T)
    return pairs == len(np.unique(one)) == len(np.unique(other))


def leaves_of(colormap: torch.Tensor, delta: float, features: str = "rgb+lab") -> np.ndarray:
    colours = collect_colours(colormap[None])
    leaf = dichotomise(colours, colour_features(colours.rgb, features), delta)
    return leaf[colours.pixel][0].numpy()


@pytest.mark.parametrize("features", ["rgb+lab", "rgb", "lab"])
@pytest.mark.parametrize("delta", [1, 4, 10, 50])
def test_same_partition_as_per_pixel_reference(delta: float, features: str) -> None:
    for seed in range(3):
        colormap = noisy_map(seed, sigma=2 + 5 * seed)
        expected = reference(colormap, delta, features)
        assert same_partition(leaves_of(colormap, delta, features), expected)


@pytest.mark.parametrize("seed", range(4))
def test_every_stop_obeys_the_rule_on_all_pixels(seed: int) -> None:
    colormap = noisy_map(seed, sigma=4 + 3 * seed)
    leaf, points = leaves_of(colormap, 10).ravel(), pixel_features(colormap, "rgb+lab")
    assert len(np.unique(leaf)) > 5
    for number in np.unique(leaf):
        mine = points[leaf == number]
        assert np.linalg.norm(mine - mine.mean(0), axis=1).mean() < 10


def test_clusters_do_not_depend_on_the_batch() -> None:
    maps = torch.stack([noisy_map(seed, sigma=3 * seed) for seed in range(4)])
    alone = [decode_dichotomy(one) for one in maps]
    order = [2, 0, 3, 1]
    together = decode_dichotomy(maps[order])
    for row, image in enumerate(order):
        assert torch.equal(together.labels[row], alone[image].labels[0])
        assert together.scores[row] == alone[image].scores[0]


class HostWaits(TorchFunctionMode):
    """Counts operations whose outcome the host must know before it can go on."""

    NAMES = (
        "tolist", "item", "numpy", "cpu", "to", "__int__", "__float__", "__bool__", "__index__",
        "nonzero", "argwhere", "unique", "_unique2", "unique_consecutive", "masked_select",
        "equal", "allclose", "bincount",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        indexed = func.__name__ in ("__getitem__", "__setitem__")
        masks = args[1] if indexed and isinstance(args[1], tuple) else args[1:2]
        mask = indexed and any(getattr(one, "dtype", None) is torch.bool for one in masks)
        self.count += mask or func.__name__ in self.NAMES
        return func(*args, **(kwargs or {}))


def test_the_host_waits_per_depth_and_per_few_rounds_and_never_per_cluster(monkeypatch) -> None:
    """On a GPU each wait empties the queue: one for the sizes of a depth, one per look."""
    calls = {"find_tight": 0, "_choose_side": 0}

    def tally(name: str) -> None:
        call = getattr(dichotomy, name)

        def counted(*args):
            calls[name] += 1
            return call(*args)

        monkeypatch.setattr(dichotomy, name, counted)

    colours = collect_colours(torch.stack([noisy_map(seed, sigma=4) for seed in range(3)]))
    points = colour_features(colours.rgb)
    tally("find_tight")
    tally("_choose_side")
    with HostWaits() as waits:
        leaf = dichotomise(colours, points)
    depths = calls["find_tight"]
    looks = (calls["_choose_side"] - (depths - 1)) // ROUNDS  # the last sides are of no round
    assert waits.count == 1 + depths + looks
    assert int(leaf.max()) > 100


def test_a_squared_rule_would_shatter_what_the_plain_one_keeps() -> None:
    labels = torch.arange(1, 5).repeat_interleave(12).repeat(48, 1)
    generator = torch.Generator().manual_seed(0)
    picture = encode_colormap(labels).float()
    picture += 2 * torch.randn(picture.shape, generator=generator)
    found = decode_dichotomy(picture.clamp(0, 255).round().byte())
    assert same_partition(found.labels[0].numpy(), labels.numpy())


def test_kmeans_with_the_true_number_finds_flat_entities() -> None:
    labels = torch.tensor([[1, 2, 3], [4, 5, 5]]).repeat_interleave(8, 0).repeat_interleave(8, 1)
    colormap = encode_colormap(torch.stack((labels, labels.clamp(max=3))))
    found = decode_kmeans(colormap, [5, 3]).labels
    assert same_partition(found[0].numpy(), labels.numpy())
    assert same_partition(found[1].numpy(), labels.clamp(max=3).numpy())
    three = decode_kmeans(colormap, 3).labels
    assert [int(image.max()) for image in three] == [3, 3]


def test_kmeans_partition_is_a_fixed_point() -> None:
    colormap = noisy_map(1)
    label = decode_kmeans(colormap, 4).labels[0].ravel()
    points = torch.from_numpy(pixel_features(colormap, "rgb+lab"))
    centres = torch.stack([points[label == k].mean(0) for k in range(1, 5)])
    assert torch.equal(torch.cdist(points, centres).argmin(1) + 1, label.long())
