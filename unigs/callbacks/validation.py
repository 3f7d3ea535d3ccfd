"""Sampled validation: every task sampled, decoded, scored and shown."""

from __future__ import annotations

import math
import warnings

from lightning.pytorch.callbacks import Callback

from unigs.evaluation.judging import sheet_row
from unigs.evaluation.predictors import run_batch
from unigs.metrics.segmentation import EntityQuality
from unigs.pictures import SHEET_TITLES, draw_sheet
from unigs.pipeline import Solver
from unigs.records import TASKS, Batch


def compute_together(quality: EntityQuality) -> dict[str, float]:
    """Figures over all ranks; every rank must call this, also for what it saw nothing of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a metric without an update
        return {name: float(value) for name, value in quality.compute().items()}


class SampledValidation(Callback):
    """Sample every task on the validation batches, decode, score, and show.

    Logs ``val/<task>/miou`` and ``val/<task>/recall`` and, per task, one panel of pictures.

    Args:
        steps: sampling steps.
        solver: sampler.
        pictures: samples per task in a panel.
    """

    def __init__(self, steps: int = 20, solver: Solver = "unipc", pictures: int = 4) -> None:
        self.options = {"steps": steps, "solver": solver}
        self.pictures = pictures
        self._quality = {task: EntityQuality() for task in TASKS}
        self._rows: dict[str, list] = {task: [] for task in TASKS}

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self._pipeline = pl_module.make_pipeline()
        for task in TASKS:
            self._quality[task].reset()
            self._quality[task].to(pl_module.device)
            self._rows[task] = []

    def on_validation_batch_end(
        self, trainer, pl_module, outputs, batch: Batch, batch_idx, dataloader_idx=0
    ) -> None:
        task = TASKS[int(batch.task[0])]
        prediction = run_batch(self._pipeline, batch, **self.options)
        self._quality[task].update(prediction.labels, batch.labels, batch.ignored)
        room = self.pictures - len(self._rows[task])
        self._rows[task] += [sheet_row(batch, prediction, i) for i in range(min(room, len(batch)))]

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        for task in TASKS:
            for name, value in compute_together(self._quality[task]).items():
                if not math.isnan(value):
                    pl_module.log(f"val/{task}/{name}", value, rank_zero_only=True)
            if self._rows[task] and trainer.is_global_zero:
                sheet = draw_sheet(SHEET_TITLES, self._rows[task])
                for logger in trainer.loggers:
                    if hasattr(logger.experiment, "add_image"):
                        logger.experiment.add_image(f"val/{task}", sheet, trainer.global_step)
