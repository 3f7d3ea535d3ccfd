"""What happens around the steps: EMA, sampled validation, throughput, preemption.

Each callback stands alone and keeps its own state in the checkpoint, readable with
``weights_only=True``.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers.training_utils import EMAModel
from lightning.pytorch.callbacks import Callback

from unigs.evaluation.judging import sheet_row
from unigs.evaluation.predictors import PipelinePredictor, run_batch
from unigs.evaluation.run import evaluate, load_judges
from unigs.metrics.segmentation import EntityQuality
from unigs.pictures import SHEET_TITLES, draw_sheet
from unigs.pipeline import Solver
from unigs.records import TASKS, Batch
from unigs.report import write_report

PREEMPTED_EXIT_CODE = 143
"""What ``unigs fit`` exits with after SIGTERM or SIGUSR1, so that schedulers start it again."""


class EMA(Callback):
    """Exponential moving average of the trained UNet; validation and export use it.

    Args:
        decay: of the average; warmed up as (1 + n) / (10 + n) over the first steps n.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        self.decay = decay
        self._ema: EMAModel | None = None
        self._restored: dict[str, Any] | None = None
        self._seen_steps = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        named = dict(pl_module.unet.named_parameters())  # type: ignore[union-attr]
        self._names = list(named)
        self._ema = EMAModel(list(named.values()), decay=self.decay)
        if self._restored is not None:
            self._ema.shadow_params = [self._restored["weights"][name] for name in self._names]
            self._ema.optimization_step = self._restored["steps"]
            self._restored = None
        self._ema.to(pl_module.device)
        self._seen_steps = trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step > self._seen_steps:  # not while gradients accumulate
            self._seen_steps = trainer.global_step
            self._ema.step(pl_module.unet.parameters())  # type: ignore[union-attr]

    def on_validation_start(self, trainer, pl_module) -> None:
        if self._ema is not None:
            self._ema.store(pl_module.unet.parameters())
            self._ema.copy_to(pl_module.unet.parameters())

    def on_validation_end(self, trainer, pl_module) -> None:
        if self._ema is not None:
            self._ema.restore(pl_module.unet.parameters())

    def state_dict(self) -> dict[str, Any]:
        if self._ema is None:
            return {}
        weights = dict(zip(self._names, self._ema.shadow_params))
        return {"weights": weights, "steps": self._ema.optimization_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict or None


def read_ema(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor] | None:
    """The averaged UNet weights inside a loaded checkpoint, by name, or None if there are none."""
    state = checkpoint.get("callbacks", {}).get("EMA") or {}
    return state.get("weights")


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
            quality = self._quality[task]
            if quality.update_called:
                for name, value in quality.compute().items():
                    pl_module.log(f"val/{task}/{name}", float(value), rank_zero_only=True)
            if self._rows[task] and trainer.is_global_zero:
                sheet = draw_sheet(SHEET_TITLES, self._rows[task])
                for logger in trainer.loggers:
                    if hasattr(logger.experiment, "add_image"):
                        logger.experiment.add_image(f"val/{task}", sheet, trainer.global_step)


class Evaluation(Callback):
    """The paper's tables in Lightning's test loop: ``unigs test --config ... --ckpt_path ...``.

    Args:
        out: folder of the results; an interrupted evaluation continues there.
        name: what the model is called in the tables.
        samples_per_task: pictures of each task (paper: 1000).
        steps: sampling steps (paper: 200).
        solver: ``ddim`` (paper) or ``unipc``.
        inception_weights: file for FID; without it FID is left out and named as missing.
        clip_weights: open_clip checkpoint file for the CLIP score; likewise.
        clip_backbone: open_clip's name of that network.
        segmenter: local folder of the Mask2Former that judges synthesis; likewise.
        protocol: ``protocol.json`` of an earlier evaluation, to insist on the same inputs.
    """

    def __init__(
        self,
        out: str,
        name: str = "unigs",
        samples_per_task: int = 1000,
        steps: int = 200,
        solver: Solver = "ddim",
        inception_weights: str | None = None,
        clip_weights: str | None = None,
        clip_backbone: str = "ViT-L-14-quickgelu",
        segmenter: str | None = None,
        protocol: str | None = None,
    ) -> None:
        self.out, self.name, self.samples_per_task = out, name, samples_per_task
        self.options = {"steps": steps, "solver": solver}
        self.judges = (inception_weights, clip_weights, clip_backbone, None, segmenter, False)
        self.protocol = protocol

    def on_test_start(self, trainer, pl_module) -> None:
        predictor = PipelinePredictor(
            pl_module.make_pipeline(), self.name, seed=trainer.datamodule.seed, **self.options
        )
        folder = Path(self.out) / self.name
        evaluate(
            predictor,
            trainer.datamodule,
            folder,
            load_judges(*self.judges, device=str(pl_module.device)),
            self.samples_per_task,
            self.protocol,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            barrier=trainer.strategy.barrier,
        )
        if trainer.is_global_zero:
            print(write_report(Path(self.out), [folder]))


class Throughput(Callback):
    """Logs ``perf/samples_per_s`` over all ranks and ``perf/data_wait``, the loader's share.

    Args:
        every_n_steps: batches between two log entries.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps

    def on_train_start(self, trainer, pl_module) -> None:
        self._start = self._mark = time.perf_counter()
        self._waited_s, self._samples = 0.0, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._waited_s += time.perf_counter() - self._mark

    def on_train_batch_end(self, trainer, pl_module, outputs, batch: Batch, batch_idx) -> None:
        self._mark = now = time.perf_counter()
        self._samples += len(batch) * trainer.world_size
        if (batch_idx + 1) % self.every_n_steps == 0:
            seconds = now - self._start
            pl_module.log("perf/samples_per_s", self._samples / seconds, batch_size=1)
            pl_module.log("perf/data_wait", self._waited_s / seconds, batch_size=1)
            self._start, self._waited_s, self._samples = now, 0.0, 0


class Preemption(Callback):
    """On SIGTERM or SIGUSR1: finish the step, save a checkpoint, stop.

    The signal only sets a flag; ranks agree on it at a step's end, so all save the same step.
    ``unigs fit`` then exits with ``PREEMPTED_EXIT_CODE``; the checkpoint is the one that
    ``--ckpt_path last`` resumes from.

    Args:
        every_n_steps: batches between two agreements among ranks.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        self.every_n_steps = every_n_steps
        self.preempted = False
        self._signalled = False

    def on_train_start(self, trainer, pl_module) -> None:
        owner = os.getpid()

        def note(number, frame) -> None:
            self._signalled = self._signalled or os.getpid() == owner  # not in forked workers

        for number in (signal.SIGTERM, signal.SIGUSR1):  # the trainer restores the old ones
            signal.signal(number, note)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (batch_idx + 1) % self.every_n_steps:
            return
        if trainer.strategy.reduce_boolean_decision(self._signalled, all=False):
            folder = getattr(trainer.checkpoint_callback, "dirpath", None)
            path = Path(folder or trainer.default_root_dir) / "last.ckpt"
            trainer.save_checkpoint(path)
            self.preempted = trainer.should_stop = True
            if trainer.is_global_zero:
                print(f"preempted at step {trainer.global_step}; saved {path}", flush=True)
