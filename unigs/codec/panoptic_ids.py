"""Entities <-> instance ids: how Pix2Seq-D numbers and weighs them, and reads them (2210.06366).

In: label maps, ints [B, H, W], 0 is no entity. Out: id maps for :mod:`unigs.codec.analog_bits`, in
which each entity of a picture has an id of its own, and weights for the loss. Back: a class map
and an id map to entities. No matching anywhere: any injective map of ids is a true answer
(Section 3). No weights; on the maps' device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from unigs.codec.analog_bits import BitCode, BitsError, check_map, check_pair
from unigs.records import Skips
from unigs.seeds import rng

LEAST_PX = 40
"""An id with fewer pixels is void (Section 3, inference)."""

IdKind = Literal["random", "shuffle", "place"]
"""How entities get their ids: at random out of all ids (the paper, pictures), as a permutation of
1..N (the paper, video), or by raster order of their centres of mass (ours, an ablation)."""


class Panoptic(NamedTuple):
    """One picture's entities.

    Attributes:
        labels: int32 [H, W]; 0 is void, 1..N entities, largest first.
        classes: class of label k at ``classes[k - 1]``, shifted by one as in the code, never 0.
    """

    labels: Tensor
    classes: list[int]


def draw_ids(
    labels: Tensor,
    code: BitCode,
    seed: int,
    indices: Sequence[int],
    kind: IdKind = "random",
    *,
    most: int | None = None,
    overflow: Literal["error", "drop"] = "error",
    skips: Skips | None = None,
) -> Tensor:
    """Give each entity of each picture an id of its own (Section 3).

    A clip is one tall picture: frames stacked along H share one map.

    Args:
        labels: ints [B, H, W]; 0 is no entity and keeps id 0. Gaps are allowed.
        code: holds ids up to ``code.most_id``.
        seed: the run's seed.
        indices: each picture's place in the stream, B of them. An id map depends on labels, seed
            and index alone.
        kind: ``random``, ``shuffle`` or ``place``.
        most: the largest id to use, by default the code's.
        overflow: with more entities than ids, ``error`` raises; ``drop`` leaves out the smallest,
            which get id 0, and counts them in ``skips``.
        skips: the tally that ``drop`` writes to.

    Returns:
        int64 [B, H, W] in 0..most.

    Raises:
        BitsError: wrong labels, options or number of indices; too many entities.
    """
    most = code.most_id if most is None else most
    _check_draw(labels, code, indices, most)
    for name, value, choices in (
        ("kind", kind, get_args(IdKind)),
        ("overflow", overflow, ("error", "drop")),
    ):
        if value not in choices:
            raise BitsError(f"expected {name} of {choices}, got {value!r}, in draw_ids")
    table = torch.zeros(len(labels), int(labels.max()) + 1 if labels.numel() else 1).long()
    for row, (picture, index) in enumerate(zip(labels, indices)):
        entities = _keep_largest(_measure_entities(picture), most, overflow, skips, index)
        count = len(entities["label"])
        if kind == "place":
            drawn = _rank_places(entities)
        else:
            draw = rng(seed, index, "ids").permutation(most if kind == "random" else count)
            drawn = torch.from_numpy(draw[:count]) + 1
        table[row, entities["label"]] = drawn
    table = table.to(labels.device)
    return table.gather(1, labels.flatten(1).long()).view(labels.shape)


def _measure_entities(picture: Tensor) -> dict[str, Tensor]:
    """Label, area, first pixel and centre of what int [H, W] holds; on the CPU, [N] each."""
    width = picture.shape[1]
    label, at, area, first = _count_groups(picture)
    place = torch.arange(picture.numel(), device=picture.device)
    # Whole sums, one rounding each: equal centres stay equal on every device.
    sums = torch.zeros(2, len(label), dtype=torch.long, device=picture.device)
    sums.index_add_(1, at, torch.stack((place // width, place % width)))
    y, x = sums.double() / area
    entities = {"label": label.long(), "area": area, "first": first, "y": y, "x": x}
    return {name: values[label > 0].cpu() for name, values in entities.items()}


def _count_groups(picture: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values of int [H, W], ascending, [G]; each pixel's place among them; area and first pixel."""
    value, at, area = picture.reshape(-1).unique(return_inverse=True, return_counts=True)
    place = torch.arange(picture.numel(), device=picture.device)
    first = torch.full_like(area, picture.numel()).scatter_reduce(0, at, place, "amin")
    return value, at, area, first


def _keep_largest(
    entities: dict[str, Tensor], most: int, overflow: str, skips: Skips | None, index: int
) -> dict[str, Tensor]:
    """The ``most`` largest entities, by label; of equal ones the first in the picture."""
    count = len(entities["label"])
    if count <= most:
        return entities
    if overflow == "error":
        raise BitsError(
            f"expected at most {most} entities, got {count}, in the picture of index {index};"
            " overflow='drop' leaves out the smallest"
        )
    order = _order_by_area(entities["area"], entities["first"])
    for label in entities["label"][order[most:]].tolist():
        if skips is not None:
            skips.add("more entities than ids", f"label {label} of index {index}")
    kept = order[:most].sort().values
    return {name: values[kept] for name, values in entities.items()}


def _order_by_area(area: Tensor, first: Tensor) -> Tensor:
    """Largest first; of equal ones the first in the picture, never by label."""
    order = first.argsort(stable=True)
    return order[area[order].argsort(descending=True, stable=True)]


def _rank_places(entities: dict[str, Tensor]) -> Tensor:
    """1..N in raster order of the centres, int64 [N]; of equal ones the first pixel decides."""
    columns = [entities[name].numpy() for name in ("first", "x", "y")]
    return torch.from_numpy(np.lexsort(columns).argsort()) + 1


def instance_weights(ids: Tensor, power: float) -> Tensor:
    """Weigh pixels so that small instances count more: (1 / (area + 1))**power (Section 3).

    Args:
        ids: ints [B, H, W], ids or labels; what carries 0 is one region like the others.
        power: 0 or more; 0 weighs all alike, the paper takes 0.2.

    Returns:
        float32 [B, H, W], mean 1 in each picture.

    Raises:
        BitsError: wrong ids, a negative power.
    """
    check_map(ids, "ids", "instance_weights")
    if not 0 <= power < float("inf"):
        raise BitsError(f"expected a power >= 0, got {power}, in instance_weights")
    if not ids.numel():
        return ids.new_zeros(ids.shape, dtype=torch.float)
    flat = ids.flatten(1).long()
    area = flat.new_zeros(len(ids), int(ids.max()) + 1)
    area.scatter_add_(1, flat, torch.ones_like(flat))
    weight = (area.double() + 1).pow(-power).gather(1, flat)
    return (weight / weight.mean(1, keepdim=True)).view(ids.shape).float()


def decode_panoptic(classes: Tensor, ids: Tensor, least_px: int = LEAST_PX) -> list[Panoptic]:
    """Make entities of a class map and an id map (Section 3).

    An id's class is that of most of its pixels, the lower of two equals. An id with fewer than
    ``least_px`` pixels is void, and so is one that is mostly void. Stuff regions carry ids too
    and are not merged.

    Args:
        classes: ints [B, H, W], shifted by one, 0 is void.
        ids: ints [B, H, W], 0 is none.
        least_px: pixels, 1 or more.

    Returns:
        One :class:`Panoptic` per picture; renaming ids changes nothing of it.

    Raises:
        BitsError: wrong maps, ``least_px`` below 1.
    """
    for name, values in (("classes", classes), ("ids", ids)):
        check_map(values, name, "decode_panoptic")
    check_pair(classes, ids, "decode_panoptic")
    if least_px < 1:
        raise BitsError(f"expected least_px >= 1, got {least_px}, in decode_panoptic")
    return [_gather_entities(c.long(), i.long(), least_px) for c, i in zip(classes, ids)]


def _gather_entities(classes: Tensor, ids: Tensor, least_px: int) -> Panoptic:
    """The entities of one picture, int64 [H, W] twice."""
    value, at, area, first = _count_groups(ids)
    majority = _vote_classes(classes.reshape(-1), at)
    order = _order_by_area(area, first)
    kept = order[((value > 0) & (majority > 0) & (area >= least_px))[order]]
    number = torch.zeros_like(area)
    number[kept] = torch.arange(1, len(kept) + 1, device=ids.device)
    return Panoptic(number[at].view(ids.shape).int(), majority[kept].tolist())


def _vote_classes(classes: Tensor, group: Tensor) -> Tensor:
    """The most frequent class in each group of pixels, int64 [G]; the lower of two equals."""
    pair, votes = torch.stack((group, classes)).unique(dim=1, return_counts=True)
    order = votes.argsort(descending=True, stable=True)  # pairs come sorted: lower classes first
    order = order[pair[0, order].argsort(stable=True)]
    leads = pair[0, order].diff(prepend=pair.new_full((1,), -1)) > 0
    return pair[1, order[leads]]


def _check_draw(labels: Tensor, code: BitCode, indices: Sequence[int], most: int) -> None:
    check_map(labels, "labels", "draw_ids")
    if not 1 <= most <= code.most_id:
        raise BitsError(f"expected most in 1..{code.most_id}, got {most}, in draw_ids")
    if len(indices) != len(labels):
        raise BitsError(
            f"expected {len(labels)} indices, one per picture, got {len(indices)}, in draw_ids"
        )
