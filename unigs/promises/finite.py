"""A run stops at the first loss or gradient that is not finite, before it reaches the weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from unigs.checkpoints import NotFinite
from unigs.records import TASKS, Batch
from unigs.sharding import take_local

SHOWN = 8
"""Sample keys that a message names at most."""


class FiniteSteps(Callback):
    """Look at loss and gradient before every optimiser step; stop, or skip that step.

    All ranks decide alike: the verdict on losses and gradients is shared. With
    half precision and a loss scaler only the loss is looked at, because the scaler skips steps by
    itself while it looks for its scale.

    Args:
        skip_steps: steps of a run that may be skipped, and are counted, before it stops.
    """

    def __init__(self, skip_steps: int = 0) -> None:
        self.skip_steps = skip_steps
        self.skipped = 0
        self._losses: list[torch.Tensor] = []
        self._batches: list[Any] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._batches.append(batch)

    def on_before_backward(self, trainer, pl_module, loss: torch.Tensor) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        losses, batches = torch.stack(self._losses), self._batches
        self._losses, self._batches = [], []
        fine = torch.isfinite(losses).all()
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            fine = fine & is_gradient_finite(optimizer)
        if trainer.strategy.reduce(fine.float(), reduce_op="min").item():  # a step's only wait
            return
        self.skipped += 1
        step = trainer.global_step + 1
        guilty = not torch.isfinite(losses).all()
        words = f"in step {step}: {gather_words(describe(losses, batches), guilty)}"
        if self.skipped > self.skip_steps:
            raise NotFinite(
                f"expected a finite loss and gradient, got NaN or infinity, {words}. No weight was "
                "touched; a lower learning rate or gradient clipping may help, "
                "unigs.callbacks.FiniteSteps can skip single steps",
                agreed=True,
            )
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = None  # an optimiser passes over weights without a gradient
        if trainer.is_global_zero:
            print(f"skipped a step that is not finite ({self.skipped} so far) {words}", flush=True)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self.skipped:
            pl_module.log("train/skipped_steps", float(self.skipped), batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = int(state_dict.get("skipped", 0))


def is_gradient_finite(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Whether this rank's gradients, or its shards of them, are finite; bool [] on their device."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    grads = [take_local(weight.grad) for weight in weights if weight.grad is not None]
    if not grads:
        return torch.tensor(True)
    return torch.isfinite(torch.stack(torch._foreach_norm(grads)).sum())


def describe(losses: torch.Tensor, batches: list[Any]) -> str:
    """Which samples this rank had, in words."""
    mine = [batch for batch in batches if isinstance(batch, Batch)]
    keys = [key for batch in mine for key in batch.keys]
    rows = sorted({row for batch in mine for row in batch.task.tolist()})
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    values = ", ".join(f"{loss:.4g}" for loss in losses.tolist())
    tasks = ", ".join(TASKS[row] for row in rows)
    return f"loss {values}; tasks {tasks}; samples {', '.join(keys[:SHOWN])}{more}"


def gather_words(mine: str, guilty: bool) -> str:
    """The same words on every rank: of those whose loss is not finite, of all if there is none.

    Args:
        mine: of this rank.
        guilty: whether its loss is not finite.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return mine
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (guilty, mine))
    named = [(rank, words) for rank, (one, words) in enumerate(told) if one]
    named = named or [(rank, words) for rank, (_, words) in enumerate(told)]
    return "; ".join(f"rank {rank}: {words}" for rank, words in named)
