"""What is asked of an evaluation: which pictures, and who judges them. No torch.

The command line and configs read these records before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from unigs.records import TASKS, check_bounds
from unigs.tasks import TaskOptions


@dataclass(frozen=True)  # no slots: the command line reads its fields
class Scenes:
    """Which pictures, and what is asked of them.

    Args:
        tasks: which of the four.
        samples_per_task: pictures of each task (paper: 1000).
        split: split of the sources.
        source_weights: per task the weights of its sources, as in the data config.
        resolution_px: side of the samples.
        min_area: entities under this part of a sample are not asked for.
        max_painted: most entities of a picture; None: what the default palette can paint.
        batch_size: pictures per call.
        num_workers: loader processes.
        seed: of pictures and conditions.
    """

    tasks: tuple[str, ...] = TASKS
    samples_per_task: int = 1000
    split: str = "val"
    source_weights: dict[str, dict[str, float]] | None = None
    resolution_px: int = 512
    min_area: float = TaskOptions.min_area
    max_painted: int | None = None
    batch_size: int = 8
    num_workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        some = (1, inf)
        check_bounds(
            self, "scenes", samples_per_task=some, resolution_px=some, min_area=(0, 1),
            max_painted=some, batch_size=some, num_workers=(0, inf),
        )  # fmt: skip


@dataclass(frozen=True)  # no slots: the command line reads its fields
class JudgeFiles:
    """Weights of the networks that judge pictures; what is not given is left out and named.

    Args:
        inception_weights: FID's network, inception-2015-12-05.pt.
        clip_weights: an open_clip checkpoint file for the CLIP score, or a folder with its config.
        clip_backbone: open_clip's name of that network.
        clip_download: tag of the weights to download instead, e.g. openai.
        segmenter: folder or hub id of the segmenter that judges synthesis (paper: Mask2Former).
        allow_download: baselines and segmenter may come from the hub.
    """

    inception_weights: str | None = None
    clip_weights: str | None = None
    clip_backbone: str = "ViT-L-14-quickgelu"
    clip_download: str | None = None
    segmenter: str | None = None
    allow_download: bool = False
