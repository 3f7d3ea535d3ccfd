"""Connected regions of label maps as a graph, in tensor operations, batched, on any device.

In: an int map [B, H, W]. Out: region numbers, and who touches whom. Used by
:mod:`unigs.codec.refine`. Horizontal runs are the nodes, so that the graph of a map is small; the
union takes a number of rounds logarithmic in its size, and a few host synchronisations per map.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unite(a: Tensor, b: Tensor, nodes: int) -> Tensor:
    """Least node of the connected component of each node, given edges a-b; int64 [nodes]."""
    root = torch.arange(nodes, device=a.device)
    while True:
        low, high = torch.minimum(root[a], root[b]), torch.maximum(root[a], root[b])
        if torch.equal(low, high):
            return root
        root = root.scatter_reduce(0, high, low, "amin")  # hook the higher root to the lower
        while not torch.equal(root, above := root[root]):
            root = above


def label_regions(key: Tensor) -> Tensor:
    """Number the 4-connected regions of equal key; where key < 0 there is none.

    Args:
        key: int64 [B, H, W], not empty.

    Returns:
        int64 [B, H, W]; numbers without gaps over the batch, ascending with the first pixel; -1
        where key < 0.
    """
    start = torch.ones_like(key, dtype=torch.bool)
    start[..., 1:] = key[..., 1:] != key[..., :-1]
    run = start.view(-1).cumsum(0).view_as(key) - 1
    # One edge per overlap of two runs of equal key in neighbouring rows: at its first pixel.
    link = (key[:, 1:] == key[:, :-1]) & (start[:, 1:] | start[:, :-1])
    first = start.view(-1).nonzero()[:, 0]
    root = unite(run[:, :-1][link], run[:, 1:][link], len(first))
    valid = key.view(-1)[first] >= 0
    number = ((root == torch.arange(len(first), device=key.device)) & valid).cumsum(0) - 1
    return torch.where(valid, number[root], -1)[run]


def list_contacts(region: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of 4-adjacent pixels whose regions differ.

    Args:
        region: int64 [B, H, W].

    Returns:
        Flat positions of the two pixels of each pair, int64 [P] twice.
    """
    place = torch.arange(region.numel(), device=region.device).view_as(region)
    pairs = []
    for axis in (1, 2):
        size = region.shape[axis]
        here, there = region.narrow(axis, 0, size - 1), region.narrow(axis, 1, size - 1)
        differ = here != there
        pairs.append(
            (place.narrow(axis, 0, size - 1)[differ], place.narrow(axis, 1, size - 1)[differ])
        )
    return torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])


def count_pairs(a: Tensor, b: Tensor, nodes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distinct unordered pairs ``a``-``b``: low [Q], high [Q], count [Q], each pair's row [P]."""
    code = torch.minimum(a, b) * nodes + torch.maximum(a, b)
    code, row, count = code.unique(return_inverse=True, return_counts=True)
    return code // nodes, code % nodes, count, row
