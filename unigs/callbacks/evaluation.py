"""The fixed protocol in Lightning's test loop."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.callbacks import Callback

from unigs.evaluation.predictors import PipelinePredictor
from unigs.evaluation.run import evaluate, load_judges
from unigs.pipeline import Solver
from unigs.report import write_report


class Evaluation(Callback):
    """The paper's tables in Lightning's test loop: ``unigs test --config ... --ckpt_path ...``.

    Args:
        out: folder of the results; an interrupted evaluation continues there. None: the folder
            ``evaluation`` beside the run's checkpoints.
        name: what the model is called in the tables.
        samples_per_task: pictures of each task (paper: 1000).
        steps: sampling steps (paper: 200).
        solver: ``ddim`` (paper) or ``unipc``.
        inception_weights: file for FID; without it FID is left out and named as missing.
        clip_weights: open_clip checkpoint file for the CLIP score; likewise.
        clip_backbone: open_clip's name of that network.
        segmenter: local folder of the Mask2Former that judges synthesis; likewise.
        protocol: ``protocol.json`` of an earlier evaluation, to insist on the same inputs.
    """

    def __init__(
        self,
        out: str | None = None,
        name: str = "unigs",
        samples_per_task: int = 1000,
        steps: int = 200,
        solver: Solver = "ddim",
        inception_weights: str | None = None,
        clip_weights: str | None = None,
        clip_backbone: str = "ViT-L-14-quickgelu",
        segmenter: str | None = None,
        protocol: str | None = None,
    ) -> None:
        self.out, self.name, self.samples_per_task = out, name, samples_per_task
        self.options = {"steps": steps, "solver": solver}
        self.judges = (inception_weights, clip_weights, clip_backbone, None, segmenter, False)
        self.protocol = protocol

    def on_test_start(self, trainer, pl_module) -> None:
        predictor = PipelinePredictor(
            pl_module.make_pipeline(), self.name, seed=trainer.datamodule.seed, **self.options
        )
        out = Path(self.out or Path(trainer.log_dir or trainer.default_root_dir) / "evaluation")
        folder = out / self.name
        evaluate(
            predictor,
            trainer.datamodule,
            folder,
            load_judges(*self.judges, device=str(pl_module.device)),
            self.samples_per_task,
            self.protocol,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            barrier=trainer.strategy.barrier,
        )
        if trainer.is_global_zero:
            print(write_report(out, [folder]))
