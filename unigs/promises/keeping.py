"""One folder, one run: locked while it trains, named, and saved however it ends."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from unigs.checkpoints import LAST
from unigs.files import write_json
from unigs.locks import lock_folder
from unigs.promises.preemption import Preempted
from unigs.promises.reasons import find_reason, is_lost_rank, tell_reason
from unigs.promises.resume import describe_run
from unigs.records import UnigsError
from unigs.sharding import FSDP2

RUN_NAME = "run.json"
"""A run's options, beside its checkpoints."""


def list_savers(trainer: L.Trainer) -> list[ModelCheckpoint]:
    """The trainer's ``ModelCheckpoint`` s, in order."""
    return [c for c in trainer.callbacks if isinstance(c, ModelCheckpoint)]  # type: ignore[attr-defined]


def list_folders(trainer: L.Trainer) -> list[Path]:
    """Where the trainer's checkpoints lie, the folder of ``last.ckpt`` first."""
    return [Path(str(saver.dirpath)) for saver in list_savers(trainer) if saver.dirpath]


def read_record(path: Path) -> dict[str, Any]:
    """The options of the run whose folder this is.

    Raises:
        UnigsError: the file is damaged.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        content = error
    if not isinstance(content, dict):
        raise UnigsError(
            f"expected the options of a run, got {str(content)[:80]!r}, at {path}; remove it if "
            "the checkpoints beside it are this run's"
        )
    return content


class KeepRun(Callback):
    """Locks the folder of checkpoints, refuses another run's, and saves ``last.ckpt`` at the end.

    The end is that of the steps, a signal (``Preempted``), or an error of ours that leaves the
    weights as the last step made them. Without a ``ModelCheckpoint`` only a signal saves.
    """

    PLACE = 3

    def __init__(self) -> None:
        self._open = ExitStack()
        self._first_step: int | None = None

    def on_fit_start(self, trainer, pl_module) -> None:
        """Take the folder.

        Raises:
            FolderBusy: another process trains there.
            OtherRun: checkpoints of another run lie there.
        """
        self._first_step = None
        folders = list_folders(trainer)
        if not trainer.is_global_zero or not folders or trainer.fast_dev_run:
            return
        self._open.enter_context(lock_folder(folders[0], "training"))
        run = describe_run(trainer, pl_module, trainer.datamodule)
        record = folders[0] / RUN_NAME
        held = sorted(folders[0].glob("*.ckpt"))
        if held and record.is_file():
            run.refuse_other(read_record(record), f"the folder {folders[0]}")
        if held and not trainer.ckpt_path:
            rank_zero_warn(
                f"{folders[0]} holds checkpoints of this run, and it begins anew over them; "
                "--ckpt_path last goes on from them"
            )
        write_json(record, run.options)

    def on_train_start(self, trainer, pl_module) -> None:
        self._first_step = trainer.global_step

    def on_train_end(self, trainer, pl_module) -> None:
        if list_folders(trainer) and not trainer.fast_dev_run:
            self._save_last(trainer, together=True)

    def on_exception(self, trainer, pl_module, exception: BaseException) -> None:
        moment, agreed = getattr(exception, "moment", None), getattr(exception, "agreed", False)
        if not agreed and not is_lost_rank(exception):
            tell_reason(f"preempted ({moment})" if moment else f"{exception}")
        with self._open:
            if trainer.state.fn != "fit" or not isinstance(exception, (Preempted, UnigsError)):
                return
            words = f"preempted ({moment})" if moment else "stopped"
            if self._first_step is None or trainer.global_step == self._first_step:
                words += " before the first step of this process; there is nothing to save"
            elif isinstance(trainer.strategy, FSDP2) and trainer.world_size > 1 and not agreed:
                words += f" at step {trainer.global_step}; one rank has its shards alone to save"
            elif moment or list_folders(trainer):
                path = self._save_last(trainer, together=agreed)
                words += f" at step {trainer.global_step}; saved {path}"
            if reason := find_reason():
                words += f"; it began with {reason}"
            if trainer.is_global_zero:
                print(words, flush=True)
            if isinstance(exception, Preempted):
                exception.told = True

    def teardown(self, trainer, pl_module, stage: str) -> None:
        self._open.close()

    def _save_last(self, trainer: L.Trainer, together: bool) -> Path:
        """Save ``last.ckpt`` unless it holds this step; ``together`` waits for the other ranks."""
        path = [*list_folders(trainer), Path(trainer.default_root_dir)][0] / LAST
        if any(_holds(saver, path, trainer.global_step) for saver in list_savers(trainer)):
            return path
        if together:
            trainer.save_checkpoint(path)
        else:
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(checkpoint, path)
        return path


def _holds(saver: ModelCheckpoint, path: Path, step: int) -> bool:
    """Whether a saver has just written this step to ``last.ckpt``."""
    mine = saver.last_model_path and Path(saver.last_model_path).resolve() == path.resolve()
    return bool(mine) and saver._last_global_step_saved == step
