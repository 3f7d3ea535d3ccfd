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

import numpy as np
import torch

from unigs.metrics.overlaps import (
    IOU_THRESHOLDS,
    Overlaps,
    check_labels,
    count_overlaps,
    match_entities,
    to_grid,
)
from unigs.metrics.tally import TallyMetric


def rate_entities(overlaps: Overlaps) -> np.ndarray:
    """IoU of each true entity with its pair, float64 [N]; see the module's definitions."""
    best = np.zeros(len(overlaps.true_px))
    iou = overlaps.iou
    rows, columns = match_entities(iou)
    best[columns] = iou[rows, columns]
    return best


class EntityQuality(TallyMetric):
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

    entries = 2 + len(IOU_THRESHOLDS)

    @staticmethod
    def measure(predicted, true, ignored=None) -> torch.Tensor:
        """Sum of IoU, number of true entities, and how many reach each threshold."""
        iou = rate_entities(count_overlaps(predicted, true, ignored))
        hits = (iou[None] >= IOU_THRESHOLDS[:, None]).sum(1)
        return torch.tensor([to_grid(iou).sum(), len(iou), *hits], dtype=torch.float64)

    @staticmethod
    def summarise(tally: torch.Tensor) -> dict[str, torch.Tensor]:
        iou_sum, entities, *hits = tally.unbind(-1)
        return {
            "miou": iou_sum / entities,
            "recall": hits[0] / entities,
            "recall_50_95": sum(hits) / (len(hits) * entities),
        }


class ReferringQuality(TallyMetric):
    """cIoU and gIoU of the foreground, as generalised referring segmentation reports them.

    - **gIoU**: mean over pictures of the foreground's IoU. A picture without a target counts 1 if
      nothing is predicted, else 0.
    - **cIoU**: shared pixels over union pixels, summed over all pictures. A picture without a
      target adds its false pixels to the union.
    - **no_target_accuracy**: share of pictures without a target in which nothing is predicted; NaN
      without such pictures.
    """

    entries = 6

    @staticmethod
    def measure(predicted, true, ignored=None) -> torch.Tensor:
        """Shared and union pixels, IoU, 1, without a target, of those left empty."""
        check_labels(predicted, true, ignored)
        found, wanted = predicted > 0, (true > 0).to(predicted.device)
        if ignored is not None:
            seen = ~ignored.to(found.device)
            found, wanted = found & seen, wanted & seen
        shared_px, union_px = int((found & wanted).sum()), int((found | wanted).sum())
        no_target = not bool(wanted.any())
        empty = no_target and union_px == 0
        iou = float(empty) if no_target else float(to_grid(np.array(shared_px / union_px)))
        row = [shared_px, union_px, iou, 1, no_target, empty]
        return torch.tensor([float(entry) for entry in row], dtype=torch.float64)

    @staticmethod
    def summarise(tally: torch.Tensor) -> dict[str, torch.Tensor]:
        shared_px, union_px, iou_sum, pictures, no_target, empty = tally.unbind(-1)
        return {
            "ciou": shared_px / union_px,
            "giou": iou_sum / pictures,
            "no_target_accuracy": empty / no_target,
        }
