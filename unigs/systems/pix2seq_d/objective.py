"""What Pix2Seq-D learns: class and id of every cell, out of noise (2210.06366, Section 3).

In: a batch of entity segmentation and the network. Out: one loss per sample. Ids, noise and time
are functions of (seed, index) alone, so a resumed or re-scaled run sees the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from unigs.codec.analog_bits import BitCode, encode_bits, expected_bits, split_logits
from unigs.codec.panoptic_ids import IdKind, draw_ids, instance_weights
from unigs.noise import draw_times, draw_uniform, training_noise
from unigs.records import TASKS, Batch, UnigsError
from unigs.systems.pix2seq_d.diffusion import add_noise, signal_share
from unigs.systems.pix2seq_d.network import BitDenoiser, find_grid
from unigs.systems.pixels import resize_labels
from unigs.tasks.classes import UNKNOWN, ClassTable, paint_classes

LossKind = Literal["xent", "l2", "sigmoid", "eps"]
"""Softmax cross-entropy over the integers of each group (the paper), or for its ablation: squared
error of the bits, sigmoid cross-entropy of each bit, squared error of the noise."""


@dataclass(frozen=True)  # no slots: the command line reads its fields
class Objective:
    """What the network is asked for, and how its errors weigh.

    Args:
        loss: see ``LossKind``.
        instance_power: pixels weigh as (1 / (area of their instance + 1)) to this power.
        ids: how entities get their ids: ``random``, ``shuffle`` or ``place``; see ``IdKind``.
        most_ids: the largest id in use, and so the most entities of a picture (paper: 100); None:
            as many as the bits hold.
        past_dropped: share of the frames before that are not shown, each drawn for itself, so that
            the network can do without (paper: 0.1 to 0.2). Of pictures it says nothing.
    """

    loss: LossKind = "xent"
    instance_power: float = 0.2
    ids: IdKind = "random"
    most_ids: int | None = None
    past_dropped: float = 0.1

    def __post_init__(self) -> None:
        for name, kinds in (("loss", get_args(LossKind)), ("ids", get_args(IdKind))):
            if getattr(self, name) not in kinds:
                raise UnigsError(
                    f"expected one of {', '.join(kinds)}, got {getattr(self, name)!r}, "
                    f"at model.objective.{name}"
                )
        if not 0 <= self.past_dropped <= 1:
            raise UnigsError(
                f"expected a share of 0 to 1, got {self.past_dropped}, "
                "at model.objective.past_dropped"
            )

    def limit_ids(self, code: BitCode) -> int:
        """The largest id in use.

        Raises:
            UnigsError: the bits do not hold it.
        """
        most = code.most_id if self.most_ids is None else self.most_ids
        if not 1 <= most <= code.most_id:
            raise UnigsError(
                f"expected ids in 1..{code.most_id}, as {code.id_bits} bits hold, got {most}, "
                "at model.objective.most_ids"
            )
        return most


class Truth(NamedTuple):
    """The true maps on the mask grid.

    Attributes:
        classes: int64 [B, h, w], shifted by one; 0 is void.
        ids: int64 [B, h, w], 0 is none.
        known: bool [B, h, w].
        past: classes and ids of the frames before, int64 [B, P, 2, h, w], the nearest first; None
            of a network that does not look back.
    """

    classes: Tensor
    ids: Tensor
    known: Tensor
    past: Tensor | None = None


def count_outputs(loss: LossKind, code: BitCode) -> int:
    """Channels that the network answers with."""
    return code.logit_channels if loss == "xent" else code.channels


def read_truth(
    batch: Batch,
    table: ClassTable,
    code: BitCode,
    objective: Objective,
    grid: tuple[int, int],
    frames: int = 0,
) -> Truth:
    """Classes and ids of a batch on the mask grid, nearest; an id for each entity that is known.

    An entity has one id in all frames of its sample: a clip is one tall picture.

    Args:
        batch: of entity segmentation.
        table: its classes.
        code: of the bits.
        objective: how ids are drawn, and frames dropped.
        grid: cells, h x w.
        frames: that the network looks back at; a picture has none, and they are void.

    Raises:
        UnigsError: the batch is of another task.
    """
    for task in {TASKS[row] for row in batch.task.tolist()} - {"entity"}:
        raise UnigsError(
            f"expected batches of entity segmentation, got {task}, in Pix2SeqD; "
            "give data.task_ratios {entity: 1}"
        )
    found = resize_labels(paint_classes(batch, table), grid)
    classes = (found + 1).clamp(min=0)  # unknown and background are void
    labels = resize_labels(batch.labels, grid).masked_fill(classes == 0, 0)
    indices, most = batch.index.tolist(), objective.limit_ids(code)
    seen = read_past(batch, table, objective, grid, frames)  # [B, P, 2, h, w]
    tall = torch.cat((labels[:, None], seen[:, :, 1]), 1).flatten(1, 2)
    drawn = draw_ids(tall, code, batch.seed, indices, objective.ids, most=most)
    ids, *before = drawn.unflatten(1, (1 + frames, grid[0])).unbind(1)
    past = torch.stack((seen[:, :, 0], torch.stack(before, 1)), 2) if frames else None
    return Truth(classes, ids, found != UNKNOWN, past)


def read_past(
    batch: Batch, table: ClassTable, objective: Objective, grid: tuple[int, int], frames: int
) -> Tensor:
    """Classes and labels of the frames before, int64 [B, frames, 2, h, w]; 0 of those dropped."""
    maps = torch.zeros(len(batch), frames, 2, *grid, dtype=torch.long, device=batch.labels.device)
    if batch.past is None:
        return maps
    names = [(*here, *gone) for here, gone in zip(batch.names, batch.gone, strict=True)]
    seen = replace(batch, names=names, ignored=torch.zeros_like(batch.ignored))
    for k in range(min(frames, batch.past.shape[1])):
        seen.labels = batch.past[:, k]
        drawn = draw_uniform(batch.seed, batch.index.tolist(), f"past {k + 1}")
        kept = (drawn >= objective.past_dropped).to(maps.device)[:, None, None]
        classes = (resize_labels(paint_classes(seen, table), grid) + 1).clamp(min=0) * kept
        maps[:, k, 0], maps[:, k, 1] = classes, resize_labels(seen.labels, grid) * (classes > 0)
    return maps


def measure_losses(
    objective: Objective, network: BitDenoiser, code: BitCode, table: ClassTable, batch: Batch
) -> Tensor:
    """The loss of each sample at its own time and noise, float32 [B].

    Cells whose truth is unknown count as no error, so a sample weighs as much as is known of it.
    """
    grid = find_grid((batch.labels.shape[-2], batch.labels.shape[-1]), network.told.divisor)
    truth = read_truth(batch, table, code, objective, grid, network.told.past)
    clean = encode_bits(truth.classes, truth.ids, code)
    noise = training_noise(batch, clean.shape[1:]).to(clean.device)
    times = draw_times(batch.seed, batch.index.tolist())
    gamma = signal_share(times).to(clean.device, torch.float32)
    noisy = add_noise(clean, noise, gamma)
    past = None if truth.past is None else encode_past(truth.past, code)
    output = network.denoise(noisy, gamma, *network.encode(batch.image, past)).float()
    error = measure_error(objective.loss, output, truth, (clean, noise), code)
    weight = instance_weights(truth.ids, objective.instance_power) * truth.known
    return (weight * error).mean((1, 2))


def encode_past(maps: Tensor, code: BitCode) -> Tensor:
    """Maps of classes and ids of frames, int64 [B, P, 2, h, w] -> bits float [B, P, C, h, w]."""
    classes, ids = maps.flatten(0, 1).unbind(1)
    return encode_bits(classes, ids, code).unflatten(0, maps.shape[:2])


def measure_error(
    loss: LossKind, output: Tensor, truth: Truth, made: tuple[Tensor, Tensor], code: BitCode
) -> Tensor:
    """The error of each cell, float32 [B, h, w], averaged over groups or bits.

    Args:
        loss: of which kind.
        output: the network's, float32 [B, count_outputs(loss, code), h, w].
        truth: on the mask grid.
        made: the clean bits and the noise, [B, C, h, w] each.
        code: of the bits.
    """
    clean, noise = made
    if loss == "xent":
        pairs = zip(split_logits(output, code), (truth.classes, truth.ids))
        errors = [nn.functional.cross_entropy(*pair, reduction="none") for pair in pairs]
        return torch.stack(errors).mean(0)
    if loss == "sigmoid":
        target = (clean > 0).float()
        error = nn.functional.binary_cross_entropy_with_logits(output, target, reduction="none")
    else:
        error = (output - (noise if loss == "eps" else clean)) ** 2
    return error.mean(1)


def read_clean(
    loss: LossKind, output: Tensor, noisy: Tensor, gamma: Tensor, code: BitCode
) -> Tensor:
    """x_0 as the network's answer says it, float32 [B, C, h, w], not clipped.

    Args:
        loss: by which the network was trained.
        output: its answer.
        noisy: float [B, C, h, w], which it was shown.
        gamma: float [B], which it was told.
        code: of the bits.
    """
    if loss == "xent":
        return expected_bits(output, code)
    if loss == "l2":
        return output.float()
    if loss == "sigmoid":
        return (2 * output.float().sigmoid() - 1) * code.scale
    share = gamma[:, None, None, None]
    return (noisy - (1 - share).sqrt() * output.float()) / share.sqrt()
