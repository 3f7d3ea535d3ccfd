"""What every system that we train has in common: the promises of docs/promises.md.

Left of ``training`` and ``judge``, whose modules derive from it: the callbacks that hold the
promises come with the system, whatever a config lists.
"""

from __future__ import annotations

from typing import ClassVar

import lightning as L
from lightning.pytorch.callbacks import Callback

from unigs.callbacks.finite import FiniteSteps
from unigs.callbacks.keeping import KeepRun
from unigs.callbacks.preemption import Preemption
from unigs.callbacks.resume import ExactResume
from unigs.runs import Rule


class Learner(L.LightningModule):
    """Base of our systems."""

    ON_RESUME: ClassVar[dict[str, Rule]] = {}
    """What a change of an argument does on resume; what is not named makes another run."""

    def configure_callbacks(self) -> list[Callback]:
        """The callbacks that every run has; one that the config lists stays the config's."""
        kinds = (FiniteSteps, ExactResume, Preemption, KeepRun)
        listed = {type(callback) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        return [kind() for kind in kinds if kind not in listed]
