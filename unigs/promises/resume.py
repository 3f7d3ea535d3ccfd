"""Exact resume: a checkpoint saved at any moment is the state after the last optimiser step.

Weights, average and optimiser change in a step and nowhere else. What moves between two steps are
counters: batches of a window of accumulation, the stream's position, the loops' progress. They are
noted after each step, and whoever saves, whenever, saves these notes. So a run resumes from the
batch after its last step, and the position in the stream does not hang on Lightning's loops.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import lightning as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.utilities import rank_zero_warn

from unigs.checkpoints import RUN, BadCheckpoint, CheckedIO
from unigs.records import UnigsError
from unigs.runs import Rule, Run, flatten_options

TRAINER_RULES: dict[str, Rule] = {
    "trainer.precision": "warned",
    "trainer.accumulate_grad_batches": "warned",
    "trainer.gradient_clip_val": "warned",
    "trainer.gradient_clip_algorithm": "warned",
    "trainer.limit_train_batches": "warned",
}


def describe_run(trainer: L.Trainer, module: L.LightningModule, data: Any) -> Run:
    """What a run is: options of system, data and trainer, and what a change of each means."""
    limit, clip = trainer.limit_train_batches, trainer.gradient_clip_algorithm
    options: dict[str, Any] = {
        "system": type(module).__name__,
        "trainer.precision": str(trainer.precision),
        "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
        "trainer.gradient_clip_val": trainer.gradient_clip_val,
        "trainer.gradient_clip_algorithm": clip.value if clip else "norm",
        "trainer.limit_train_batches": None if limit == 1.0 else limit,
    }
    given = {k: v for k, v in module.hparams.items() if not k.startswith("_")}
    options |= flatten_options(given, "model")
    rules = {**TRAINER_RULES, **getattr(module, "ON_RESUME", {})}
    if data is not None and hasattr(data, "describe"):
        options |= flatten_options(data.describe(), "data")
        rules |= data.ON_RESUME
    moved = getattr(module, "MOVED", {})
    moved = {f"model.{old}": f"model.{new}" for old, new in moved.items()}
    return Run(options, rules, moved)


class ExactResume(Callback):
    """Keeps what a checkpoint says at the last optimiser step, and checks what resumes from it."""

    def __init__(self) -> None:
        self._run = Run()
        self._forget()

    def _forget(self) -> None:
        self._place = (0, 0)  # epoch, batches of it that are done
        self._step = -1
        self._loops: dict[str, Any] | None = None
        self._data: dict[str, Any] | None = None

    def setup(self, trainer, pl_module, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = CheckedIO()
        # Who saves comes after all who change what is saved, and who ends the run after both.
        place = lambda callback: getattr(callback, "PLACE", int(isinstance(callback, Checkpoint)))
        trainer.callbacks = sorted(trainer.callbacks, key=place)
        self._forget()
        if stage == "fit":
            self._run = describe_run(trainer, pl_module, trainer.datamodule)

    def on_fit_start(self, trainer, pl_module) -> None:
        """Refuse weights alone before Lightning looks for their optimiser.

        Raises:
            BadCheckpoint: that is all the checkpoint holds.
        """
        loaded = trainer._checkpoint_connector._loaded_checkpoint
        if loaded and "optimizer_states" not in loaded:
            raise BadCheckpoint(
                "expected a checkpoint to resume from, got weights alone (save_weights_only); "
                "export them and pass --model.base FOLDER to begin a run from them"
            )

    def on_load_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        """Refuse or tell options that differ from the saved ones; see ``runs``."""
        if trainer.state.fn != "fit":
            return
        saved = checkpoint.get(RUN, {})
        self._run.refuse_other(saved, "the checkpoint")
        if changed := self._run.list_changes(saved, "warned"):
            rank_zero_warn(f"resumed with other options, no longer bit for bit: {changed}")
        if changed := self._run.list_changes(saved, "taken"):
            rank_zero_warn(f"resumed with other options, which take effect: {changed}")
        self._step = checkpoint["global_step"]
        self._loops = deepcopy(checkpoint["loops"]["fit_loop"])
        self._place = read_place(self._loops)
        self._data = deepcopy(checkpoint.get(_data_key(trainer)))

    def on_train_start(self, trainer, pl_module) -> None:
        """Make sure that the stream stands where the checkpoint left it.

        Raises:
            UnigsError: it does not.
        """
        if not self._place[1]:  # a new epoch begins; Lightning would look for the rest of the old
            trainer.fit_loop.epoch_loop.restarting = False
        came = _read_data(trainer)
        if self._data and came != self._data:
            raise UnigsError(
                f"expected the stream to stand at {self._data['next_index']}, got "
                f"{(came or {}).get('next_index')}, in the resumed run"
            )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        epoch, done = self._place
        self._place = (epoch + (batch_idx == 0 and done > 0), batch_idx + 1)
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._loops = note_loops(trainer, *self._place)
            self._data = _read_data(trainer)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        """Put the notes of the last step in place of this moment's counters."""
        if trainer.state.fn != "fit":
            return
        checkpoint[RUN] = dict(self._run.options)
        if self._loops is not None:
            checkpoint["loops"] = {**checkpoint["loops"], "fit_loop": self._loops}
            checkpoint["epoch"] = read_place(self._loops)[0]
            if self._data is not None:
                checkpoint[_data_key(trainer)] = self._data


def note_loops(trainer: L.Trainer, epoch: int, done: int) -> dict[str, Any]:
    """The fit loop's state as Lightning would have it after a batch of an undisturbed run.

    Its own counters stand elsewhere after a run was resumed at the end of an epoch, and a second
    resume from those trains an epoch too much or too little.

    Args:
        trainer: right after a batch that moved the weights.
        epoch: from 0.
        done: batches of it that are done, from 1.
    """
    state = deepcopy(trainer.fit_loop.state_dict())
    if done >= trainer.num_training_batches:
        epoch, done = epoch + 1, 0
    begun = epoch + (done > 0)
    progress = {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    state["epoch_progress"] = {"total": dict(progress), "current": dict(progress)}
    total = state["epoch_loop.batch_progress"]["total"]["ready"]
    state["epoch_loop.batch_progress"] = {
        "total": _count_batches(total, total - (done > 0)),
        "current": _count_batches(done, max(0, done - 1)),
        "is_last_batch": False,
    }
    if not done:  # Lightning counts it at the restart, but for a new epoch
        state["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    return state


def read_place(loops: Mapping[str, Any]) -> tuple[int, int]:
    """Epoch, and batches of it that are done, of a fit loop's state."""
    done = loops["epoch_loop.batch_progress"]["current"]["ready"]
    epochs = loops["epoch_progress"]["current"]
    return epochs["processed"], done if epochs["started"] > epochs["processed"] else 0


def _count_batches(begun: int, completed: int) -> dict[str, int]:
    return {"ready": begun, "started": begun, "processed": begun, "completed": completed}


def _data_key(trainer: Any) -> str:
    return type(trainer.datamodule).__qualname__


def _read_data(trainer: Any) -> dict[str, Any] | None:
    data = trainer.datamodule
    return deepcopy(data.state_dict()) if data is not None else None
