"""What Pix2Seq-D learns: class and id of every cell, out of noise (2210.06366, Section 3).

In: a batch of entity segmentation and the network. Out: one loss per sample. Ids, noise and time
are functions of (seed, index) alone, so a resumed or re-scaled run sees the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from unigs.codec.analog_bits import BitCode, encode_bits, expected_bits, split_logits
from unigs.codec.panoptic_ids import IdKind, draw_ids, instance_weights
from unigs.records import TASKS, Batch, UnigsError
from unigs.systems.noise import draw_noise, draw_times
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
    """

    loss: LossKind = "xent"
    instance_power: float = 0.2
    ids: IdKind = "random"
    most_ids: int | None = None

    def __post_init__(self) -> None:
        for name, kinds in (("loss", get_args(LossKind)), ("ids", get_args(IdKind))):
            if getattr(self, name) not in kinds:
                raise UnigsError(
                    f"expected one of {', '.join(kinds)}, got {getattr(self, name)!r}, "
                    f"at model.objective.{name}"
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
    """

    classes: Tensor
    ids: Tensor
    known: Tensor


def count_outputs(loss: LossKind, code: BitCode) -> int:
    """Channels that the network answers with."""
    return code.logit_channels if loss == "xent" else code.channels


def read_truth(
    batch: Batch, table: ClassTable, code: BitCode, objective: Objective, grid: tuple[int, int]
) -> Truth:
    """Classes and ids of a batch on the mask grid, nearest; an id for each entity that is known.

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
    ids = draw_ids(labels, code, batch.seed, indices, objective.ids, most=most)
    return Truth(classes, ids, found != UNKNOWN)


def measure_losses(
    objective: Objective, network: BitDenoiser, code: BitCode, table: ClassTable, batch: Batch
) -> Tensor:
    """The loss of each sample at its own time and noise, float32 [B].

    Cells whose truth is unknown count as no error, so a sample weighs as much as is known of it.
    """
    grid = find_grid((batch.labels.shape[-2], batch.labels.shape[-1]), network.told.divisor)
    truth = read_truth(batch, table, code, objective, grid)
    clean = encode_bits(truth.classes, truth.ids, code)
    indices = batch.index.tolist()
    noise = draw_noise(batch.seed, indices, clean.shape[1:], "noise").to(clean.device)
    gamma = signal_share(draw_times(batch.seed, indices)).to(clean.device, torch.float32)
    noisy = add_noise(clean, noise, gamma)
    output = network.denoise(noisy, gamma, *network.encode(batch.image)).float()
    error = measure_error(objective.loss, output, truth, (clean, noise), code)
    weight = instance_weights(truth.ids, objective.instance_power) * truth.known
    return (weight * error).mean((1, 2))


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
