"""Entity mIoU and recall (Tables 5-9), and cIoU and gIoU for referring.

In: predicted and true labels, int [H, W] or [B, H, W], optionally ignored bool of the same shape.
Out: floats. The paper does not define its mIoU and recall; the definitions here are ours:

- the entities of a picture are paired one to one so that the sum of their IoU is largest;
- a true entity's IoU is that of its pair, 0 when it has none;
- **mIoU** is the mean over all true entities of all pictures;
- **recall** is the share of them with IoU >= 0.5, **recall_50_95** its mean over COCO's ten
  thresholds. A false prediction costs nothing here; AP^e and PQ count it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics import Metric

from unigs.metrics.overlaps import (
    IOU_THRESHOLDS,
    Overlaps,
    check_labels,
    count_overlaps,
    each_picture,
    match_entities,
    to_grid,
)


@dataclass(frozen=True, slots=True)
class RegionScore:
    """One picture's foreground against foreground.

    Attributes:
        shared_px, union_px: pixels in both, pixels in either.
        has_target: the truth holds at least one entity.
    """

    shared_px: int
    union_px: int
    has_target: bool

    @property
    def iou(self) -> float:
        """IoU of the foregrounds; without a target 1 for an empty prediction, else 0."""
        if not self.has_target:
            return float(self.union_px == 0)
        return self.shared_px / self.union_px


def rate_entities(overlaps: Overlaps) -> np.ndarray:
    """IoU of each true entity with its pair, float64 [N]; see the module's definitions."""
    best = np.zeros(len(overlaps.true_px))
    iou = overlaps.iou
    rows, columns = match_entities(iou)
    best[columns] = iou[rows, columns]
    return best


def score_region(
    predicted: torch.Tensor, true: torch.Tensor, ignored: torch.Tensor | None = None
) -> RegionScore:
    """Compare the union of all predicted with the union of all true entities.

    Args:
        predicted: int [H, W]. true: int [H, W]. ignored: bool [H, W], left out of both.

    Raises:
        UnigsError: maps that cannot be compared.
    """
    check_labels(predicted, true, ignored)
    found, wanted = predicted > 0, (true > 0).to(predicted.device)
    if ignored is not None:
        found, wanted = found & ~ignored.to(found.device), wanted & ~ignored.to(found.device)
    return RegionScore(
        shared_px=int((found & wanted).sum()),
        union_px=int((found | wanted).sum()),
        has_target=bool(wanted.any()),
    )


class EntityQuality(Metric):
    """Entity mIoU and recall over any number of pictures and ranks.

    ``compute`` gives ``{"miou", "recall", "recall_50_95"}``, float64; NaN where no true entity has
    been seen. The same to the last bit in any order and for any number of ranks.

    Example:
        >>> metric = EntityQuality()
        >>> labels = torch.tensor([[[1, 1], [2, 0]]])
        >>> metric.update(labels, labels)
        >>> float(metric.compute()["miou"])
        1.0
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    iou_sum: torch.Tensor
    recalled: torch.Tensor
    entities: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.float64)
        recalled = torch.zeros(len(IOU_THRESHOLDS), dtype=torch.float64)
        self.add_state("iou_sum", zero, dist_reduce_fx="sum")
        self.add_state("recalled", recalled, dist_reduce_fx="sum")
        self.add_state("entities", zero.clone(), dist_reduce_fx="sum")

    def update(
        self,
        predicted: torch.Tensor,
        true: torch.Tensor,
        ignored: torch.Tensor | None = None,
    ) -> None:
        """Add pictures.

        Args:
            predicted: int [B, H, W] or [H, W].
            true: int, the same shape.
            ignored: bool, the same shape; left out of both.

        Raises:
            UnigsError: shapes that differ, labels that are no integers.
        """
        for picture in each_picture(predicted, true, ignored):
            iou = rate_entities(count_overlaps(*picture))
            hits = (iou[None] >= IOU_THRESHOLDS[:, None]).sum(1).astype(np.float64)
            self.iou_sum += float(to_grid(iou).sum())
            self.recalled += torch.from_numpy(hits).to(self.recalled.device)
            self.entities += len(iou)

    def compute(self) -> dict[str, torch.Tensor]:
        recall = self.recalled / self.entities
        return {
            "miou": self.iou_sum / self.entities,
            "recall": recall[0],
            "recall_50_95": recall.mean(),
        }


class ReferringQuality(Metric):
    """cIoU and gIoU of the foreground, as generalised referring segmentation reports them.

    - **gIoU**: mean over pictures of the foreground's IoU. A picture without a target counts 1 if
      nothing is predicted, else 0.
    - **cIoU**: shared pixels over union pixels, summed over all pictures. A picture without a
      target adds its false pixels to the union.
    - **no_target_accuracy**: share of pictures without a target in which nothing is predicted; NaN
      without such pictures.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    shared_px: torch.Tensor
    union_px: torch.Tensor
    iou_sum: torch.Tensor
    pictures: torch.Tensor
    without_target: torch.Tensor
    left_empty: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in (
            "shared_px",
            "union_px",
            "iou_sum",
            "pictures",
            "without_target",
            "left_empty",
        ):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        predicted: torch.Tensor,
        true: torch.Tensor,
        ignored: torch.Tensor | None = None,
    ) -> None:
        """Add pictures; arguments as in :meth:`EntityQuality.update`."""
        for picture in each_picture(predicted, true, ignored):
            score = score_region(*picture)
            self.shared_px += score.shared_px
            self.union_px += score.union_px
            self.iou_sum += float(to_grid(np.array(score.iou)))
            self.pictures += 1
            self.without_target += not score.has_target
            self.left_empty += not score.has_target and score.union_px == 0

    def compute(self) -> dict[str, torch.Tensor]:
        return {
            "ciou": self.shared_px / self.union_px,
            "giou": self.iou_sum / self.pictures,
            "no_target_accuracy": self.left_empty / self.without_target,
        }
