"""The average of the trained weights (EMA); validation and export use it."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from unigs.records import UnigsError
from unigs.sharding import gather, place_as, take_local
from unigs.signals import ENDING, hold_signals


class EMA(Callback):
    """Exponential moving average of the trained network; validation and export use it.

    Only what is trained has an average.

    Args:
        decay: of the average; warmed up as (1 + n) / (10 + n) over the first steps n.
        device: ``cpu`` keeps the average in the host's memory. It visits the weights' device for
            each optimiser step, a tensor at a time, and so has the same bits; two copies of the
            weights over the bus a step. None: where the weights are, shards included.
    """

    def __init__(self, decay: float = 0.9999, device: Literal["cpu"] | None = None) -> None:
        self.decay, self.device = decay, device
        self._averages: dict[str, torch.Tensor] = {}
        self._restored: dict[str, Any] = {}
        self._steps = 0
        self._seen_steps = 0
        self._trained: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Weights with what was trained, while averages stand there."""
        self._exchanged = False  # or they lie in the averages' memory

    def decay_at(self, step: int) -> float:
        """What is left of the average at a step, from 0, which takes the weights as they are."""
        return min(self.decay, (1 + step) / (10 + step)) if step else 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        named = list_trained(pl_module)
        known, self._steps = self._restored.get("weights", named), self._restored.get("steps", 0)
        self._averages = {name: self._begin(known[name], one) for name, one in named.items()}
        self._restored = {}

    def _begin(self, known: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if self.device is None:
            return place_as(known, weight)
        if isinstance(weight, DTensor):
            raise UnigsError(
                f"expected averages beside the weights' shards, got {self.device!r}, at the device "
                "of EMA"
            )
        return known.detach().to(self.device, copy=True)

    def on_train_start(self, trainer, pl_module) -> None:
        self._seen_steps = trainer.global_step  # a resumed run knows it only now

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step > self._seen_steps:  # not while gradients accumulate
            self._seen_steps = trainer.global_step
            weights = [take_local(one.detach()) for one in list_trained(pl_module).values()]
            averages = [take_local(average) for average in self._averages.values()]
            update = get_ema_multi_avg_fn(self.decay_at(self._steps))
            if self.device:
                for average, weight in zip(averages, weights, strict=True):
                    visitor = average.to(weight.device)
                    update([visitor], [weight], None)
                    average.copy_(visitor)
            else:
                update(averages, weights, None)
            self._steps += 1

    def on_validation_start(self, trainer, pl_module) -> None:
        """Let the averages stand for the weights; of a whole model on one device without a copy."""
        if self._averages and self.device:
            self._exchange(pl_module)
        elif self._averages:
            weights = list(list_trained(pl_module).values())
            self._trained = [(weight, _take(weight)) for weight in weights]
            for weight, average in zip(weights, self._averages.values(), strict=True):
                _put(weight, average)

    def on_validation_end(self, trainer, pl_module) -> None:
        self._swap_back(pl_module)

    def on_exception(self, trainer, pl_module, exception) -> None:
        """A run that ends in a validation is saved with the weights that were trained."""
        self._swap_back(pl_module)

    def _swap_back(self, pl_module) -> None:
        if self._exchanged:
            self._exchange(pl_module)
        for weight, trained in self._trained:
            _put(weight, trained)
        self._trained = []

    def _exchange(self, pl_module) -> None:
        """Swap averages and weights, a tensor at a time, so that no device holds both."""
        with hold_signals(*ENDING):  # half of a swap would be saved as weights
            for name, weight in list_trained(pl_module).items():
                trained = weight.data.to(self.device, copy=True)
                weight.data.copy_(self._averages[name])
                self._averages[name].copy_(trained)
            self._exchanged = not self._exchanged

    def state_dict(self) -> dict[str, Any]:
        if not self._averages:
            return {}
        return {"weights": gather(self._averages), "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict


def list_trained(module: L.LightningModule) -> dict[str, torch.Tensor]:
    """Weights of a system's network that are trained, by name."""
    named = module.network.named_parameters()  # type: ignore[union-attr,operator]
    return {name: weight for name, weight in named if weight.requires_grad}


def _take(weight: torch.Tensor) -> torch.Tensor:
    """What a weight is, to be put back: its memory, or a copy of its shard, which has to stay."""
    return weight.detach().clone() if isinstance(weight, DTensor) else weight.data


def _put(weight: torch.Tensor, value: torch.Tensor) -> None:
    if isinstance(weight, DTensor):
        weight.detach().copy_(value)
    else:
        weight.data = value
