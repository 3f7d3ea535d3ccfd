"""Sampled validation: every task sampled, decoded by every decoder, scored and shown."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from PIL import Image

from unigs.evaluation.judging import sheet_row
from unigs.metrics.segmentation import EntityQuality
from unigs.pictures import SHEET_TITLES, draw_sheet
from unigs.records import TASKS, Batch
from unigs.systems.predictor import name_task
from unigs.systems.sampling import Sampling


def compute_together(quality: EntityQuality) -> dict[str, float]:
    """Figures over all ranks; every rank must call this, also for what it saw nothing of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a metric without an update
        return {name: float(value) for name, value in quality.compute().items()}


def log_panel(logger: Logger, key: str, panel: np.ndarray, step: int) -> None:
    """Show a panel in any logger of Lightning that takes pictures; others go without.

    Args:
        logger: with ``log_image(key, images, step=)`` (Weights & Biases) or an experiment with
            ``add_image`` (TensorBoard).
        key, panel, step: uint8 [3, H, W] under a name, at an optimiser step.
    """
    if hasattr(logger, "log_image"):
        logger.log_image(key, [Image.fromarray(panel.transpose(1, 2, 0))], step=step)
        return
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_image"):
        experiment.add_image(key, panel, step)


class SampledValidation(Callback):
    """Sample every task on the validation batches, decode, score, and show.

    Logs ``val/<task>/miou`` and ``val/<task>/recall`` of the model's own decoder, the same with
    ``_<decoder>`` behind it of every other one (``val/entity/miou_dichotomy`` is the paper's), and
    per task one panel of pictures that shows the masks of each.

    Args:
        sampling: what to do in another way than the model's own.
        decoders: decoders to score; None: all that the system has.
        pictures: samples per task in a panel.
    """

    def __init__(
        self,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        decoders: list[str] | None = None,
        pictures: int = 4,
    ) -> None:
        self.sampling, self.decoders, self.pictures = sampling, decoders, pictures
        self._quality: dict[tuple[str, str], EntityQuality] = {}
        self._rows: dict[str, list] = {}

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self._predictor = pl_module.make_predictor(self.sampling)
        own = self._predictor.decoders[0]
        asked = self._predictor.decoders if self.decoders is None else self.decoders
        self._others = [decoder for decoder in asked if decoder != own]
        for task in TASKS:
            self._rows[task] = []
            for suffix in ("", *(f"_{decoder}" for decoder in self._others)):
                quality = self._quality.setdefault((task, suffix), EntityQuality())
                quality.reset()
                quality.to(pl_module.device)

    def on_validation_batch_end(
        self, trainer, pl_module, outputs, batch: Batch, batch_idx, dataloader_idx=0
    ) -> None:
        task = name_task(batch)
        prediction = self._predictor(batch)
        answers = {"": prediction}
        for decoder in self._others:
            answers[f"_{decoder}"] = self._predictor.decode_again(batch, prediction, decoder)
        for suffix, answer in answers.items():
            self._quality[task, suffix].update(answer.labels, batch.labels, batch.ignored)
        room = self.pictures - len(self._rows[task])
        for place in range(min(room, len(batch))):
            self._rows[task].append(sheet_row(batch, prediction, place, list(answers.values())[1:]))

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        del self._predictor  # of adapters it holds a merged network
        titles = [*SHEET_TITLES[:-1], *self._others, SHEET_TITLES[-1]]
        for (task, suffix), quality in self._quality.items():
            for name, value in compute_together(quality).items():
                if not math.isnan(value):
                    pl_module.log(f"val/{task}/{name}{suffix}", value, rank_zero_only=True)
        for task in TASKS:
            if self._rows[task] and trainer.is_global_zero:
                sheet = draw_sheet(titles, self._rows[task])
                for logger in trainer.loggers:
                    log_panel(logger, f"val/{task}", sheet, trainer.global_step)
