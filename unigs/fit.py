"""LightningCLI over our module and data: fit, validate, test and predict.

Decisions that Lightning leaves to us: optimisers are the module's own; the saved config may be
overwritten (a requeued job writes to the same folder); samplers are never replaced; what the
command line and the config say beats what a checkpoint remembers; preemption has an exit code.
"""

from __future__ import annotations

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from unigs.callbacks import PREEMPTED_EXIT_CODE, Preemption

DEFAULTS = {
    "trainer.use_distributed_sampler": False,
    "seed_everything": 0,
}


class UnigsCLI(LightningCLI):
    """LightningCLI whose command line beats the hyperparameters inside a checkpoint."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults(DEFAULTS)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyperparameters override the user's; we do not."""


def run_lightning(words: list[str]) -> int:
    """Run one training verb.

    Args:
        words: the command line from the verb on.

    Returns:
        0, or ``PREEMPTED_EXIT_CODE`` if the run was preempted and saved.
    """
    cli = UnigsCLI(
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"default_env": False},
        args=words,
    )
    preempted = [c for c in cli.trainer.callbacks if isinstance(c, Preemption) and c.preempted]  # type: ignore[attr-defined]
    return PREEMPTED_EXIT_CODE if preempted else 0
