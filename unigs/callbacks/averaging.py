"""The average of the trained weights (EMA); validation and export use it."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from unigs.sharding import gather, place_as, take_local


class EMA(Callback):
    """Exponential moving average of the trained network; validation and export use it.

    Args:
        decay: of the average; warmed up as (1 + n) / (10 + n) over the first steps n.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        self.decay = decay
        self._averages: dict[str, torch.Tensor] = {}
        self._restored: dict[str, Any] = {}
        self._steps = 0
        self._seen_steps = 0
        self._trained: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        """Weights with what was trained, while averages stand there."""

    def decay_at(self, step: int) -> float:
        """What is left of the average at a step, from 0, which takes the weights as they are."""
        return min(self.decay, (1 + step) / (10 + step)) if step else 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        named = dict(pl_module.network.named_parameters())  # type: ignore[union-attr]
        known, self._steps = self._restored.get("weights", named), self._restored.get("steps", 0)
        self._averages = {name: place_as(known[name], weight) for name, weight in named.items()}
        self._restored = {}

    def on_train_start(self, trainer, pl_module) -> None:
        self._seen_steps = trainer.global_step  # a resumed run knows it only now

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step > self._seen_steps:  # not while gradients accumulate
            self._seen_steps = trainer.global_step
            weights = [take_local(weight.detach()) for weight in pl_module.network.parameters()]
            averages = [take_local(average) for average in self._averages.values()]
            get_ema_multi_avg_fn(self.decay_at(self._steps))(averages, weights, None)
            self._steps += 1

    def on_validation_start(self, trainer, pl_module) -> None:
        """Let the averages stand for the weights; nothing is copied but shards."""
        if not self._averages:
            return
        weights = list(pl_module.network.parameters())
        self._trained = [(weight, _take(weight)) for weight in weights]
        for weight, average in zip(weights, self._averages.values(), strict=True):
            _put(weight, average)

    def on_validation_end(self, trainer, pl_module) -> None:
        self._swap_back()

    def on_exception(self, trainer, pl_module, exception) -> None:
        """A run that ends in a validation is saved with the weights that were trained."""
        self._swap_back()

    def _swap_back(self) -> None:
        for weight, trained in self._trained:
            _put(weight, trained)
        self._trained = []

    def state_dict(self) -> dict[str, Any]:
        if not self._averages:
            return {}
        return {"weights": gather(self._averages), "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict


def _take(weight: torch.nn.Parameter) -> torch.Tensor:
    """What a weight is, to be put back: its memory, or a copy of its shard, which has to stay."""
    return weight.detach().clone() if isinstance(weight, DTensor) else weight.data


def _put(weight: torch.nn.Parameter, value: torch.Tensor) -> None:
    if isinstance(weight, DTensor):
        weight.detach().copy_(value)
    else:
        weight.data = value
