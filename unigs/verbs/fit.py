"""LightningCLI over our module and data: fit, validate and test.

Decisions that Lightning leaves to us: optimisers are the module's own; the saved config may be
overwritten (a requeued job writes to the same folder), but not before the run owns its folder;
samplers are never replaced; what the command line and the config say beats what a checkpoint
remembers; ``ckpt_path: last`` is the newest whole checkpoint of this run; a rank that is left alone
gives up after minutes; torchrun knows how many nodes there are; preemption has an exit code.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from unigs.checkpoints import find_last
from unigs.promises.keeping import list_folders, list_savers
from unigs.promises.preemption import (
    PREEMPTED_EXIT_CODE,
    Preempted,
    Preemption,
    end_on_signals,
)
from unigs.promises.reasons import find_reason, is_lost_rank
from unigs.promises.resume import describe_run
from unigs.records import UnigsError
from unigs.sharding import RANK_TIMEOUT, refuse_strategy

DEFAULTS = {"trainer.use_distributed_sampler": False, "seed_everything": 0}


HUSHED = (
    "`isinstance(treespec, LeafSpec)` is deprecated",  # Lightning's use of torch
    "Found {} module(s) in eval mode at the start of training",  # frozen parts are meant to be
    "The '{}' does not have many workers",  # validation has one: its order is fixed
    "Checkpoint directory {} exists and is not empty",  # ``KeepRun`` lets in this run alone
)
"""Warnings of others that no user can act on, ``{}`` for any text."""

ADVERTS = ("💡 Tip: ", "TPU available: False")


class SaveConfig(SaveConfigCallback):
    """Writes the config once the run has its folder, not while that may belong to another."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")


class TrainingParser(LightningArgumentParser):
    """Lightning's parser, which reads null as a field of a record.

    jsonargparse hands ``--model.objective.x=null`` to a parser of its own class as Python writes
    it, ``--objective.x=None``, where ``None`` is a word like others.
    """

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *others: Any, **more: Any
    ) -> Any:
        words = None if args is None else [spell_as_json(word) for word in args]
        return super().parse_args(words, *others, **more)


def spell_as_json(word: str) -> str:
    """``--name=value`` with a value as Python writes it in JSON; other words as they are."""
    name, equals, value = word.partition("=")
    if equals and (value == "None" or value[:1] in ("[", "{")):
        with suppress(ValueError, SyntaxError, TypeError):  # then it is JSON or YAML already
            return f"{name}={json.dumps(ast.literal_eval(value))}"
    return word


class UnigsCLI(LightningCLI):
    """LightningCLI whose command line beats the hyperparameters inside a checkpoint."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, without ``predict``: ``unigs segment`` and its like write answers."""
        return {k: v for k, v in LightningCLI.subcommands().items() if k != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults(DEFAULTS)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyperparameters override the user's; we do not."""

    def before_instantiate_classes(self) -> None:
        """Refuse what Lightning would refuse in words of its own, or not at all."""
        told = self.config[self.subcommand].trainer.strategy  # type: ignore[index]
        refuse_strategy(told if isinstance(told, str) else told.class_path.rpartition(".")[2])

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        trainer = super().instantiate_trainer(**kwargs, **read_topology())
        if isinstance(trainer.strategy, DDPStrategy):
            trainer.strategy._timeout = RANK_TIMEOUT
            trainer.strategy._ddp_kwargs.setdefault("gradient_as_bucket_view", True)
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("ckpt_path") == "last":
            kwargs["ckpt_path"] = self._find_last()
        return kwargs

    def _find_last(self) -> str | None:
        """The newest whole checkpoint of this run; says which it is, and what it passed over."""
        trainer = self.trainer
        for saver in list_savers(trainer):
            saver.setup(trainer, self.model, "find")  # finds its folder
        run = describe_run(trainer, self.model, self.datamodule)
        if self.subcommand != "fit":  # a model may be looked at with any data
            mine = {k: v for k, v in run.options.items() if k.startswith(("system", "model."))}
            run = replace(run, options=mine)
        found, skipped = find_last(list_folders(trainer), run)
        if trainer.is_global_zero:
            for words in skipped:
                print(f"passed over {words}", flush=True)
            print(
                f"resuming from {found}" if found else "no checkpoint of this run yet", flush=True
            )
        return str(found) if found else None


def read_topology() -> dict[str, int]:
    """Nodes and devices as torchrun started them, whatever a config says; empty without it.

    An elastic torchrun starts a run again on other nodes than it began on.
    """
    if not TorchElasticEnvironment.detect():
        return {}
    started = {"num_nodes": "GROUP_WORLD_SIZE", "devices": "LOCAL_WORLD_SIZE"}
    return {option: int(os.environ[name]) for option, name in started.items()}


def make_cli(words: list[str], run: bool = True) -> UnigsCLI:
    """Parse a training command line; run it, or only build what it names.

    Args:
        words: the command line from the verb (fit, validate, test) on.
        run: carry the verb out. False builds trainer, model and data of ``fit``.
    """
    options: dict[str, Any] = {
        "subclass_mode_model": True,
        "subclass_mode_data": True,
        "auto_configure_optimizers": False,
        "parser_class": TrainingParser,
        "save_config_callback": SaveConfig,
        "save_config_kwargs": {"overwrite": True},
    }
    typed = sys.argv[1:] == words  # then Lightning reads them itself, and relaunches by them
    kind = UnigsCLI if run else _Instantiated
    return kind(args=None if typed else words, **options)


class _Instantiated(UnigsCLI):
    """Stops before the verb is carried out."""

    def _run_subcommand(self, subcommand: str) -> None:
        return


def hush() -> None:
    """Keep from people what other packages say and no user can act on; all else is shown."""
    for words in HUSHED:
        pattern = ".*".join(map(re.escape, words.split("{}")))
        warnings.filterwarnings("ignore", message=pattern)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(ADVERTS)


def run_lightning(words: list[str]) -> int:
    """Run one training verb.

    Args:
        words: the command line from the verb on.

    Returns:
        0, or ``PREEMPTED_EXIT_CODE`` if the run was preempted. Lightning's own launcher kills the
        first rank as soon as a child fails, so its children then return 0.

    Raises:
        UnigsError: among others, a rank was left alone by the others.
    """
    end_on_signals()
    hush()
    try:
        trainer = make_cli(words).trainer
    except Preempted as error:
        if not error.told:
            print("preempted before the first step; there is nothing to save", flush=True)
        return 0 if _is_child() else PREEMPTED_EXIT_CODE
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        reason = find_reason() or f"{str(error).splitlines()[0]}; look at its log"
        raise UnigsError(
            f"expected every rank to go on, got one that ended or hung ({reason}). The last "
            "checkpoint is whole"
        ) from error
    late = any(isinstance(c, Preemption) and c.preempted for c in trainer.callbacks)  # type: ignore[attr-defined]
    return PREEMPTED_EXIT_CODE if late and not _is_child() else 0


def _is_child() -> bool:
    """Whether Lightning's own launcher started this process beside a first rank."""
    return LightningEnvironment().local_rank() > 0 and not TorchElasticEnvironment.detect()
