"""How fast a run is, and how long it waits for its data."""

from __future__ import annotations

import time

from lightning.pytorch.callbacks import Callback

from unigs.records import Batch


class Throughput(Callback):
    """Logs ``perf/samples_per_s`` over all ranks and ``perf/data_wait``, the loader's share.

    Both are of the time of training; that of a validation is logged by itself, as
    ``perf/validation_s``.

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

    def on_validation_start(self, trainer, pl_module) -> None:
        self._began = time.perf_counter()

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        seconds = time.perf_counter() - self._began
        pl_module.log("perf/validation_s", seconds, rank_zero_only=True)

    def on_validation_end(self, trainer, pl_module) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            now = time.perf_counter()
            self._start += now - self._began
            self._mark = now
