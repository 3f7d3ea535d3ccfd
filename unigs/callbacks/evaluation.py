"""The fixed protocol in Lightning's test loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lightning.pytorch.callbacks import Callback

from unigs.evaluation.judging import load_judges
from unigs.evaluation.options import JudgeFiles
from unigs.evaluation.protocol import InputLoader, Inputs
from unigs.evaluation.run import Evaluator
from unigs.report import write_report
from unigs.streams import Loaded
from unigs.systems.sampling import Sampling


class Evaluation(Callback):
    """The paper's tables in Lightning's test loop: ``unigs test --config ... --ckpt_path ...``.

    Args:
        out: folder of the results; an interrupted evaluation continues there. None: the folder
            ``evaluation`` of the run.
        name: what the model is called in the tables.
        samples_per_task: pictures of each task (paper: 1000).
        sampling: what to do in another way than the model's own (paper: 200 steps of ``ddim``).
        judges: weights of the networks that judge pictures; figures without one are named.
        protocol: ``protocol.json`` of an earlier evaluation, to insist on the same inputs.
    """

    def __init__(
        self,
        out: str | None = None,
        name: str = "unigs",
        samples_per_task: int = 1000,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        judges: JudgeFiles = JudgeFiles(),  # noqa: B008
        protocol: str | None = None,
    ) -> None:
        self.out, self.name, self.samples_per_task = out, name, samples_per_task
        self.sampling, self.judges, self.protocol = sampling, judges, protocol
        self._evaluator: Evaluator | None = None

    def setup(self, trainer, pl_module, stage: str) -> None:
        if stage == "test":
            trainer.datamodule.open_test = lambda: self._open(trainer, pl_module)

    def _open(self, trainer, pl_module) -> InputLoader:
        """The inputs that are not scored yet; called when the weights are in place."""
        predictor = pl_module.make_predictor(self.sampling)
        predictor.name = self.name
        data = trainer.datamodule
        held_out = replace(data.validation, samples_per_task=self.samples_per_task)
        # Asked of the trainer here, by all ranks: it is told to all by the first.
        run = Path(trainer.log_dir or trainer.default_root_dir)
        self._folder = Path(self.out) if self.out else run / "evaluation"
        self._evaluator = Evaluator(
            predictor,
            Inputs(data, held_out, self.protocol),
            self._folder / self.name,
            load_judges(self.judges, str(pl_module.device)),
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        trainer.strategy.barrier()  # every rank has read what is done before any writes more
        return self._evaluator.loader

    def on_test_batch_end(
        self, trainer, pl_module, outputs, batch: Loaded, batch_idx, dataloader_idx=0
    ) -> None:
        assert self._evaluator is not None
        self._evaluator.score(batch)

    def teardown(self, trainer, pl_module, stage: str) -> None:
        """Sum up; here, as a rank or a run with nothing left to score sees no other hook."""
        if stage != "test" or self._evaluator is None:
            return
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self._evaluator.finish()
            print(write_report(self._folder, [self._folder / self.name]))
        self._evaluator = None
