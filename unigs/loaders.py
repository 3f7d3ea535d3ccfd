"""Loader processes that obey their trainer alone, and the count of what they had to replace."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from unigs.records import Skips, TooManySkips
from unigs.signals import hold_signals

log = logging.getLogger(__name__)

FREE_SKIPS = 32
"""Skips per rank that never stop a run, however short it is."""

LOADER_TIMEOUT_S = 600.0
"""A batch that loader processes do not deliver in this time ends the run, with words."""


class Tally:
    """What had to be replaced among the samples of one rank, told once a reason.

    Args:
        rank: of this process, for messages.
        max_fraction: the share of its samples that may be.

    Attributes:
        skips: by reason.
    """

    def __init__(self, rank: int, max_fraction: float = 0.01) -> None:
        self.rank, self.max_fraction = rank, max_fraction
        self.skips = Skips()
        self._read = 0

    def add(self, skips: Sequence[Skips]) -> None:
        """Count a batch, by sample.

        Raises:
            TooManySkips: more than the limit.
        """
        self._read += len(skips)
        for one in skips:
            for reason, where in one.examples.items():
                if reason not in self.skips.counts:
                    log.warning("sample replaced: %s: %s", reason, where)
            self.skips.update(one)
        if self.skips.total > max(FREE_SKIPS, self.max_fraction * self._read):
            raise TooManySkips(
                f"expected at most {self.max_fraction:.1%} unusable samples, got "
                f"{self.skips.total} of {self._read} on rank {self.rank}: {self.skips}"
            )


class GuardedLoader(DataLoader):
    """A stock loader whose processes obey the signals of the trainer only.

    A scheduler that ends a job signals the whole process group: workers must go on then, so that
    the trainer can finish its step and save. They are born with SIGTERM and SIGINT blocked, as
    before ``start_worker`` either would end them: one in a thread of a library, one in a traceback.

    Args:
        dataset: index -> sample.
        num_workers: processes.
        timeout_s: stop if they deliver no batch for so long, seconds.
        options: of a ``DataLoader``.
    """

    def __init__(
        self,
        dataset: Dataset,
        num_workers: int = 0,
        timeout_s: float = LOADER_TIMEOUT_S,
        **options: Any,
    ) -> None:
        super().__init__(
            dataset,
            num_workers=num_workers,
            timeout=timeout_s if num_workers else 0,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # else starting would draw from the model's own stream
            **options,
        )

    def __iter__(self) -> Any:
        with hold_signals(signal.SIGTERM, signal.SIGINT):
            return super().__iter__()


def start_worker(worker: int) -> None:
    """Let a worker, which has both blocked, obey the SIGTERM of the trainer alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_trainer, args=(os.getppid(),), daemon=True).start()


def _end_with_trainer(trainer: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)
