"""The paper's tables of results: which figures stand in them, and the paper's own rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unigs.synthetic.layouts import LICENCE


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of a group of pictures: title, ``results["figures"][task][group][figure]``."""

    title: str
    figure: str
    group: str = "all"
    digits: int = 3


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the report; rows are a paper's own numbers, None where it gives none."""

    title: str
    task: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    shown: str = "condition, image, colormap, decoded masks, ground truth"


SIDE_PX = 512
"""Of the paper's pictures."""


def is_papers(results: Mapping[str, Any]) -> bool:
    """Whether results are of pictures as the paper's: its size, and not drawn by ``synthetic``.

    Args:
        results: of ``results.json``; older ones do not say it.
    """
    data = results.get("data", {})
    drawn = LICENCE in data.get("licences", {}).values()
    return data.get("resolution_px") == SIDE_PX and not drawn


MASKS = (
    Column("mIoU", "miou"),
    Column("recall", "recall"),
)
PAPER = (
    Table(
        "Table 3: inpainting",
        "inpainting",
        (
            Column("FID, single", "fid", "single", 2),
            Column("CLIP, single", "clip_score", "single", 2),
            Column("FID, multiple", "fid", "multiple", 2),
            Column("CLIP, multiple", "clip_score", "multiple", 2),
            Column("FID, all", "fid", "all", 2),
            Column("CLIP, all", "clip_score", "all", 2),
            Column("colormap mIoU", "miou"),
            Column("recognised", "recognised"),
            Column("known error", "known_error", digits=2),
        ),
        (
            ("SD 1.5 inpainting", (4.95, 88.86, 7.82, 83.80)),
            ("UniGS from SD 1.4", (4.39, 88.92, 6.19, 84.43)),
            ("UniGS from SD 1.5 inpainting", (3.78, 90.22, 5.89, 85.87)),
        ),
    ),
    Table(
        "Table 4: synthesis",
        "synthesis",
        (
            Column("FID, single", "fid", "single", 2),
            Column("CLIP, single", "clip_score", "single", 2),
            Column("mIoU, single", "synthesis_miou", "single"),
            Column("FID, multiple", "fid", "multiple", 2),
            Column("CLIP, multiple", "clip_score", "multiple", 2),
            Column("mIoU, multiple", "synthesis_miou", "multiple"),
            Column("FID, all", "fid", "all", 2),
            Column("CLIP, all", "clip_score", "all", 2),
            Column("mIoU, all", "synthesis_miou"),
            Column("colormap mIoU", "miou"),
            Column("recognised", "recognised"),
        ),
        (
            ("SD", (36.502, 54.708, 0.196, 34.770, 56.511, 0.191)),
            ("ControlNet", (35.111, 55.230, 0.277, 30.108, 58.709, 0.326)),
            ("T2I-Adapter", (34.434, 59.024, 0.306, 24.898, 62.910, 0.379)),
            ("UniGS", (15.272, 65.015, 0.781, 14.271, 69.504, 0.777)),
        ),
    ),
    Table(
        "Table 5: referring",
        "referring",
        (
            *MASKS,
            Column("recall .50:.95", "recall_50_95"),
            Column("cIoU", "ciou"),
            Column("gIoU", "giou"),
        ),
        (("Mask2Former Swin-L", (0.815, 0.887)), ("UniGS", (0.808, 0.872))),
    ),
    Table(
        "Table 6: entity segmentation",
        "entity",
        (
            *MASKS,
            Column("AP^e", "ap"),
            Column("AP50", "ap50"),
            Column("AP75", "ap75"),
            Column("AP small", "ap_small"),
            Column("AP medium", "ap_medium"),
            Column("AP large", "ap_large"),
            Column("PQ", "pq"),
            Column("SQ", "sq"),
            Column("RQ", "rq"),
            Column("boundary IoU", "boundary_iou"),
            Column("class mIoU", "class_miou"),
            Column("class mAcc", "class_macc"),
            Column("class PQ", "class_pq"),
        ),
        (
            ("CondInst-Entity", (0.621, 0.685, 0.397)),
            ("SAM ViT-H", (0.653, 0.714, 0.432)),
            ("CropFormer", (0.664, 0.727, 0.449)),
            ("UniGS", (0.631, 0.692, 0.407)),
        ),
    ),
)

CLIPS = Table(
    "Clips: unsupervised J&F",
    "clips",
    (
        Column("J&F", "j_and_f"),
        Column("J", "j_mean"),
        Column("J recall", "j_recall"),
        Column("J decay", "j_decay"),
        Column("F", "f_mean"),
        Column("F recall", "f_recall"),
        Column("F decay", "f_decay"),
        Column("id switches", "id_switches", digits=0),
    ),
    (("Pix2Seq-D on DAVIS 2017 val, arXiv 2210.06366", (0.684,)),),
    "frames of a clip, true and found",
)

TABLES = (*PAPER, CLIPS)
"""All that a report may hold, in this order."""
