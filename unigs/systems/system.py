"""``System``: what every trainable model of the house is to trainer, evaluation and command line.

In: ``records.Batch`` es. Out: losses, checkpoints that hold the trained network and nothing frozen,
and, on request, a ``Predictor``. Callbacks, evaluation and export know this noun and no system.
``Learner`` is less: something that we train (a judge, an autoencoder) and that predicts no batch.
Both come with the callbacks that hold docs/promises.md, whatever a config lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from unigs.checkpoints import read_ema
from unigs.promises import ExactResume, FiniteSteps, KeepRun, Preemption
from unigs.records import TASKS, Batch, Latents, UnigsError
from unigs.runs import Rule
from unigs.sharding import refuse_strategy, refuse_unsharded
from unigs.systems.making import MADE, describe_making
from unigs.systems.predictor import SystemPredictor
from unigs.systems.sampling import Sampling
from unigs.systems.sending import send


class Learner(L.LightningModule):
    """Base of all that we train."""

    ON_RESUME: ClassVar[dict[str, Rule]] = {}
    """What a change of an argument does on resume; what is not named makes another run."""

    def setup(self, stage: str) -> None:
        """Refuse weights in half precision, and strategies that do not keep what a run promises.

        Raises:
            UnigsError: names the option.
        """
        refuse_strategy(type(self.trainer.strategy).__name__)
        precision = str(self.trainer.precision)
        if precision in ("bf16-true", "16-true"):
            raise UnigsError(
                f"expected 32-true, bf16-mixed or 16-mixed, got {precision}, at trainer.precision: "
                "weights of half precision round small steps away, and their average stands still"
            )

    def on_fit_start(self) -> None:
        """Refuse a strategy that shards where nothing was sharded.

        Raises:
            UnigsError: names it.
        """
        refuse_unsharded(self, self.trainer.strategy)

    def keep_options(self, **options: Any) -> None:
        """Keep the constructor's arguments as hyperparameters of plain values."""
        self.save_hyperparameters({name: to_plain(value) for name, value in options.items()})

    def configure_callbacks(self) -> list[Callback]:
        """The callbacks that every run has; one that the config lists stays the config's."""
        kinds: list[type[Callback]] = [FiniteSteps, ExactResume, Preemption, KeepRun]
        kinds += [LearningRateMonitor] if self.trainer.loggers else []
        listed = {type(callback) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        return [kind() for kind in kinds if kind not in listed]


def cycle_rate(
    module: nn.Module, learning_rate: float, total_steps: int, warm_share: float
) -> OptimizerLRScheduler:
    """AdamW whose rate rises over a share of the steps and falls to 0 by a cosine.

    Args:
        module: what is trained.
        learning_rate: the highest.
        total_steps: optimiser steps, after which none may follow.
        warm_share: part of them over which the rate rises, 0..1.
    """
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps, pct_start=warm_share
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)  # no slots: the command line reads its fields
class Optimizer:
    """AdamW: linear warm-up, then constant or cosine, by optimiser step.

    Args:
        learning_rate: after warm-up.
        warmup_steps: optimiser steps over which the rate rises linearly from 0.
        decay_steps: optimiser steps after which a cosine has brought the rate to 0; None: constant.
        weight_decay: of AdamW.
        betas: of AdamW.
        kind: ``adamw8bit`` keeps its state in 8 bits (Dettmers et al. 2022), which takes a quarter
            of the memory; it needs a CUDA GPU and ``pip install bitsandbytes``.
    """

    learning_rate: float = 1e-5
    warmup_steps: int = 1000
    decay_steps: int | None = None
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    kind: Literal["adamw", "adamw8bit"] = "adamw"

    def build(self, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser at its full rate.

        Raises:
            UnigsError: bitsandbytes is missing.
        """
        told: dict[str, Any] = {
            "lr": self.learning_rate,
            "betas": tuple(self.betas),
            "weight_decay": self.weight_decay,
        }
        if self.kind == "adamw":
            return torch.optim.AdamW(weights, fused=True, **told)
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise UnigsError(
                f"expected bitsandbytes, for {self.kind}, got none ({error}), at "
                "model.optimizer.kind: pip install bitsandbytes, or use adamw"
            ) from error
        return AdamW8bit(weights, **told)

    def rate_at(self, step: int) -> float:
        """Share of the learning rate at an optimiser step, from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.decay_steps is None:
            return rise
        share = min(1.0, step / self.decay_steps)
        return rise * 0.5 * (1 + float(torch.cos(torch.tensor(share * torch.pi))))


class System(Learner):
    """Base of our systems.

    A system sets ``NETWORK``, calls :meth:`keep_options`, builds its network in
    ``configure_model`` and defines :meth:`losses` and :meth:`make_predictor`.
    """

    NETWORK: ClassVar[str]
    """Name of the attribute that is trained, averaged and saved."""

    ENTRIES: ClassVar[tuple[str, ...]] = ()
    """Methods by which the network is called, besides ``forward``."""

    ON_RESUME: ClassVar[dict[str, Rule]] = {
        "model.optimizer": "taken",
        "model.optimizer.kind": "refused",  # one's state is none of the other's
        "model.sampling": "taken",
    }

    MOVED: ClassVar[Mapping[str, str]] = {}
    """Options that older versions saved under another name, and their dotted name now."""

    optimizer: Optimizer
    loss_weights: Mapping[str, float]
    """Weight of each of the parts that :meth:`losses` gives."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False  # frozen parts are not in checkpoints; see on_load_checkpoint

    @property
    def network(self) -> nn.Module:
        """The network that is trained; None before ``configure_model``."""
        return getattr(self, self.NETWORK)

    @property
    def max_painted(self) -> int | None:
        """Most entities of a picture that the system can tell apart; None: any number."""
        return None

    @classmethod
    def rebuild(cls, stored: Mapping[str, Any], base: str | None, where: Path) -> System:
        """A new module by the hyperparameters that a checkpoint keeps.

        Args:
            stored: plain values, of this version or an older one.
            base: where the parts lie that are not in the checkpoint; None: as it says, but nothing
                is fetched.
            where: the checkpoint, for messages.
        """
        raise NotImplementedError

    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        """Parts of the loss by name, float32 [B] each, without their weights.

        Args:
            batch: a ``Batch``; also ``Latents`` of a system that has :meth:`encode`.
        """
        raise NotImplementedError

    def describe_frozen(self) -> dict[str, Any] | None:
        """What :meth:`encode` depends on beside the batch; None: the system has no such half."""
        return None

    def encode(self, batch: Batch) -> Latents:
        """The frozen half of :meth:`losses`, which a cache may keep."""
        raise NotImplementedError

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """What :meth:`encode` makes of images alone: uint8 [B, 3, H, W] -> [B, 4, h, w]."""
        raise NotImplementedError

    def shape_noise(self, side_px: int) -> tuple[int, ...] | None:
        """Shape of one sample's training noise, which the loader draws; None: there is none.

        Args:
            side_px: of the square pictures that are trained on.
        """
        return None

    def make_predictor(self, sampling: Sampling | None = None) -> SystemPredictor:
        """A predictor over the live network, without a copy.

        Args:
            sampling: what to do in another way than the model's own.
        """
        raise NotImplementedError

    # --- steps ---

    def training_step(self, batch: Batch | Latents, batch_idx: int) -> torch.Tensor:
        """The weighted losses of one batch of mixed tasks; logged by part and by task."""
        parts = self.losses(batch)  # [B] each
        loss = sum(self.loss_weights[name] * part for name, part in parts.items()).mean()  # type: ignore[union-attr]
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        rows = batch.task.tolist()
        for name, part in parts.items():
            self.log(f"train/{name}", part.detach().mean(), batch_size=len(batch))
            for row, mean in average_by_task(part.detach(), rows).items():
                self.log(f"train/{TASKS[row]}/{name}", mean, batch_size=rows.count(row))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The same losses on the fixed validation set, averaged over the ranks."""
        for name, part in self.losses(batch).items():
            self.log(f"val/{name}", part.mean(), batch_size=len(batch), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing by itself: ``callbacks.Evaluation`` predicts and scores."""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        told = self.optimizer
        optimizer = told.build(self.network.parameters())
        # Lightning takes it for one that unscales inside of its step, and would refuse to clip.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: told.rate_at(step))
        (group,) = optimizer.param_groups
        self._asked = {name: value for name, value in group.items() if name != "params"}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Rates, betas and weight decay are the config's, not those a checkpoint remembers."""
        schedule: Any = self.trainer.lr_scheduler_configs[0].scheduler
        (group,), (share,) = schedule.optimizer.param_groups, schedule.lr_lambdas
        rate = self._asked["initial_lr"]
        schedule.base_lrs = [rate]
        group.update(self._asked, lr=rate * share(schedule.last_epoch))

    # --- checkpoints ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep frozen parts out: they are named by the options and never change."""
        if self._trainer is not None and self.trainer.state.fn == "fit":
            checkpoint[MADE] = describe_making(self.trainer)
        weights, prefix = checkpoint["state_dict"], f"{self.NETWORK}."
        checkpoint["state_dict"] = {k: v for k, v in weights.items() if k.startswith(prefix)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model by name and shape; outside of fit take its average.

        Raises:
            UnigsError: a parameter is missing, unknown, or of another shape.
        """
        self.configure_model()
        prefix = f"{self.NETWORK}."
        mine = {f"{prefix}{k}": tuple(p.shape) for k, p in self.network.state_dict().items()}
        theirs = {name: tuple(p.shape) for name, p in checkpoint["state_dict"].items()}
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                raise UnigsError(
                    f"expected {name} of shape {mine.get(name, 'none')} for {self.describe()}, "
                    f"the checkpoint has {theirs.get(name, 'none')}"
                )
        for group in (g for o in checkpoint.get("optimizer_states", []) for g in o["param_groups"]):
            if "fused" in group:  # also of a run that began otherwise: its counters then move too
                group["fused"] = True
        averaged = read_ema(checkpoint)
        if averaged and self._trainer is not None and self.trainer.state.fn != "fit":
            named = {f"{prefix}{name}": w for name, w in averaged.items()}
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **named}  # buffers stay

    def describe(self) -> str:
        """The network in a few words, for messages."""
        return type(self).__name__


def average_by_task(values: torch.Tensor, rows: list[int]) -> dict[int, torch.Tensor]:
    """Mean over the samples of each task that is there, float32 [] by its row.

    Args:
        values: float32 [B], on any device.
        rows: of its samples; a mask would be counted by the device, and waited for.
    """
    there = sorted(set(rows))
    share = torch.tensor([[(row == mine) / rows.count(row) for mine in rows] for row in there])
    return dict(zip(there, (send(share, values.device) * values).sum(1), strict=True))


def to_plain(value: Any) -> Any:
    """Records and containers as values that a checkpoint may hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(asdict(value))
    if isinstance(value, Mapping):
        return {name: to_plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(part) for part in value]
    return value
