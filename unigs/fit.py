"""LightningCLI over our module and data: fit, validate, test and predict.

Decisions that Lightning leaves to us: optimisers are the module's own; the saved config may be
overwritten (a requeued job writes to the same folder); samplers are never replaced; what the
command line and the config say beats what a checkpoint remembers; preemption has an exit code.
"""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import LightningEnvironment

from unigs.callbacks import PREEMPTED_EXIT_CODE, Preemption

DEFAULTS = {"trainer.use_distributed_sampler": False, "seed_everything": 0}


class UnigsCLI(LightningCLI):
    """LightningCLI whose command line beats the hyperparameters inside a checkpoint."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults(DEFAULTS)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyperparameters override the user's; we do not."""


def make_cli(words: list[str], run: bool = True) -> UnigsCLI:
    """Parse a training command line; run it, or only build what it names.

    Args:
        words: the command line from the verb (fit, validate, test, predict) on.
        run: carry the verb out. False builds trainer, model and data of ``fit``.
    """
    options: dict[str, Any] = {
        "subclass_mode_model": True,
        "subclass_mode_data": True,
        "auto_configure_optimizers": False,
        "save_config_kwargs": {"overwrite": True},
    }
    typed = sys.argv[1:] == words  # then Lightning reads them itself, and relaunches by them
    kind = UnigsCLI if run else _Instantiated
    return kind(args=None if typed else words, **options)


class _Instantiated(UnigsCLI):
    """Stops before the verb is carried out."""

    def _run_subcommand(self, subcommand: str) -> None:
        return


def run_lightning(words: list[str]) -> int:
    """Run one training verb.

    Args:
        words: the command line from the verb on.

    Returns:
        0, or ``PREEMPTED_EXIT_CODE`` if the run was preempted and saved. Lightning's own launcher
        kills the first rank as soon as a child fails, so its children then return 0.
    """
    trainer = make_cli(words).trainer
    preempted = any(isinstance(c, Preemption) and c.preempted for c in trainer.callbacks)  # type: ignore[attr-defined]
    environment = getattr(trainer.strategy, "cluster_environment", None)
    is_child = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
    return PREEMPTED_EXIT_CODE if preempted and not is_child else 0
