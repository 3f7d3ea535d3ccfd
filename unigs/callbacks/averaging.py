"""The average of the trained weights (EMA); validation and export use it."""

from __future__ import annotations

from typing import Any

import lightning as L
from diffusers.training_utils import EMAModel
from lightning.pytorch.callbacks import Callback


class EMA(Callback):
    """Exponential moving average of the trained network; validation and export use it.

    Args:
        decay: of the average; warmed up as (1 + n) / (10 + n) over the first steps n.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        self.decay = decay
        self._ema: EMAModel | None = None
        self._restored: dict[str, Any] | None = None
        self._seen_steps = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        named = dict(pl_module.network.named_parameters())  # type: ignore[union-attr]
        self._names = list(named)
        self._ema = EMAModel(list(named.values()), decay=self.decay)
        if self._restored is not None:
            self._ema.shadow_params = [self._restored["weights"][name] for name in self._names]
            self._ema.optimization_step = self._restored["steps"]
            self._restored = None
        self._ema.to(pl_module.device)

    def on_train_start(self, trainer, pl_module) -> None:
        self._seen_steps = trainer.global_step  # a resumed run knows it only now

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step > self._seen_steps:  # not while gradients accumulate
            self._seen_steps = trainer.global_step
            self._ema.step(pl_module.network.parameters())  # type: ignore[union-attr]

    def on_validation_start(self, trainer, pl_module) -> None:
        if self._ema is not None:
            self._ema.store(pl_module.network.parameters())
            self._ema.copy_to(pl_module.network.parameters())

    def on_validation_end(self, trainer, pl_module) -> None:
        self._swap_back(pl_module)

    def on_exception(self, trainer, pl_module, exception) -> None:
        """A run that ends in a validation is saved with the weights that were trained."""
        self._swap_back(pl_module)

    def _swap_back(self, pl_module) -> None:
        if self._ema is not None and self._ema.temp_stored_params is not None:
            self._ema.restore(pl_module.network.parameters())

    def state_dict(self) -> dict[str, Any]:
        if self._ema is None:
            return {}
        weights = dict(zip(self._names, self._ema.shadow_params))
        return {"weights": weights, "steps": self._ema.optimization_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict or None
