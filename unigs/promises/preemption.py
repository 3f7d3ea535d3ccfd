"""A scheduler's signal ends a run at once and in order: saved, and with an exit code of its own.

On one process the signal is heeded in the same moment: in a step at its end, while waiting for data
or validating immediately. Many ranks agree at the end of a step or of a validation batch, so that
all leave together; a rank that waits for data longer than ``patience_s`` after the signal leaves
alone. Who heeds it raises :class:`Preempted`; ``KeepRun`` saves on that.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

PREEMPTED_EXIT_CODE = 143
"""What ``unigs fit`` exits with after SIGTERM or SIGUSR1, so that schedulers start it again."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(SystemExit):
    """The run was told to end; a process that lets it pass exits with ``PREEMPTED_EXIT_CODE``.

    Args:
        moment: what was interrupted, for the words that are printed.
        agreed: whether all ranks end at this very point, and so may wait for each other.

    Attributes:
        told: whether it was printed what became of the run.
    """

    def __init__(self, moment: str, agreed: bool = False) -> None:
        super().__init__(PREEMPTED_EXIT_CODE)
        self.moment = moment
        self.agreed = agreed
        self.told = False


def end_on_signals() -> None:
    """Let SIGTERM and SIGUSR1 raise :class:`Preempted` from here on; ``Preemption`` refines it.

    Without it process 1 of a container would not end at all, and others without a word.
    """

    def leave(number: int, frame: Any) -> None:
        raise Preempted("start")

    for number in SIGNALS:
        signal.signal(number, leave)


class Preemption(Callback):
    """On SIGTERM or SIGUSR1: finish the step, save a checkpoint, exit with code 143.

    The checkpoint is the one that ``--ckpt_path last`` resumes from. Give a job as much grace as
    one step, one validation batch and one save take.

    Args:
        every_n_steps: optimiser steps between two agreements of many ranks; one process needs none.
        patience_s: how long a rank among many waits for its loader after the signal, seconds.
    """

    PLACE = 2

    def __init__(self, every_n_steps: int = 1, patience_s: float = 20.0) -> None:
        self.every_n_steps = every_n_steps
        self.patience_s = patience_s
        self.preempted = False
        self._signalled = False
        self._moment = "start"  # start, step, data, validation or end
        self._trainer: L.Trainer | None = None
        self._shared_batches = 0
        self._step = 0  # the last one that the ranks could agree at
        self._old: dict[int, Any] = {}

    def setup(self, trainer, pl_module, stage: str) -> None:
        if stage != "fit":
            return
        self._trainer, self._owner = trainer, os.getpid()
        self._moment, self._signalled, self.preempted = "start", False, False
        # Lightning's own handlers would end a run without saving, in places of their choice.
        trainer._signal_connector.register_signal_handlers = lambda: None
        self._old = {n: signal.signal(n, self._note) for n in (*SIGNALS, signal.SIGALRM)}

    def teardown(self, trainer, pl_module, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer, pl_module, exception: BaseException) -> None:
        self.preempted = isinstance(exception, Preempted)
        self._moment = "end"  # a second signal must not stop the saving

    def on_train_start(self, trainer, pl_module) -> None:
        self._moment, self._step = "start", trainer.global_step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._moment = "step"

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self._moment = "data"
        if self._agree_to_end(trainer):
            raise Preempted("step", agreed=True)
        if self._signalled:  # noted in the step: the next batch may never come
            signal.setitimer(signal.ITIMER_REAL, self.patience_s)

    def _agree_to_end(self, trainer: L.Trainer) -> bool:
        """Whether all ranks end here: never inside a window of accumulation, to lose none of it."""
        step, before = trainer.global_step, self._step
        self._step = step
        if step == before:
            return False
        if trainer.world_size == 1:
            return self._signalled
        due = step % self.every_n_steps == 0 or trainer.is_last_batch
        return due and trainer.strategy.reduce_boolean_decision(self._signalled, all=False)

    def on_validation_start(self, trainer, pl_module) -> None:
        if self._moment == "start":  # the sanity check
            return
        self._moment = "validation"
        batches = torch.tensor(sum(trainer.num_val_batches), device=pl_module.device)
        self._shared_batches = int(pl_module.all_gather(batches).min())

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, *_) -> None:
        if self._moment != "validation" or trainer.world_size == 1:
            return
        if batch_idx < self._shared_batches and trainer.strategy.reduce_boolean_decision(
            self._signalled, all=False
        ):
            raise Preempted("validation", agreed=True)

    def on_validation_end(self, trainer, pl_module) -> None:
        if self._moment == "validation":
            self._moment = "data"

    def on_train_end(self, trainer, pl_module) -> None:
        self._moment = "end"
        if self._signalled:  # too late to end anything earlier; the scheduler still learns of it
            self.preempted = True

    def _note(self, number: int, frame: Any) -> None:
        """The handler; it runs in the main thread, between two instructions."""
        if os.getpid() != self._owner:  # a forked loader worker obeys the trainer only
            return
        trainer = self._trainer
        assert trainer is not None
        if number in SIGNALS and not self._signalled:
            self._signalled = True
            if launcher := trainer.strategy.launcher:
                launcher.kill(number)  # to the ranks that this process started
        alone = trainer.world_size == 1
        if self._moment == "start":
            raise Preempted("start")
        if self._moment == "data" and (alone or number == signal.SIGALRM):
            raise Preempted("data")
        if self._moment == "data":
            signal.setitimer(signal.ITIMER_REAL, self.patience_s)
        if self._moment == "validation" and alone:
            raise Preempted("validation")

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}
