"""Small real parts of GSS, for its tests."""

from __future__ import annotations

import lightning as L
import torch
from builders import build_data
from diffusers import VQModel

from unigs.callbacks import EMA, Evaluation, SampledValidation
from unigs.records import Batch
from unigs.systems import GSS
from unigs.systems.backbone import Backbone, Encoder
from unigs.systems.gss.coder import Coder
from unigs.systems.gss.painting import choose_painting
from unigs.systems.gss.posterior import VQPosterior
from unigs.systems.gss.prior import MaskigePrior, Prior
from unigs.systems.gss.readers import WindowReader
from unigs.systems.gss.stages import Stages
from unigs.systems.system import Optimizer
from unigs.tasks import ClassTable, TaskOptions

TABLE = ClassTable(("ball", "cat", "sky"), (True, True, False))
BALL, CAT, SKY, NONE = range(4)
SMALL = Prior(dim=8, blocks=2, heads=2, window=3, stride=4)


def make_vq() -> VQModel:
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4), latent_channels=4, num_vq_embeddings=16, norm_num_groups=2,
        mid_block_add_attention=False,
    )  # fmt: skip


def make_stages(table=TABLE, reader=False) -> Stages:
    torch.manual_seed(0)
    painting = choose_painting(table, "farthest")
    count = len(painting.colours)
    prior = MaskigePrior(SMALL, Encoder(Backbone(width=4)), 16, count)
    coder = Coder(VQPosterior(make_vq()), painting, WindowReader(count) if reader else None)
    return Stages(prior, coder, "reader" if reader else "prior")


def make_batch(labels, names, ignored=None, task=3) -> Batch:
    count, height, width = labels.shape
    return Batch(
        keys=["a"] * count, prompts=[""] * count, asked=[()] * count, names=names, seed=0,
        index=torch.arange(count), task=torch.full((count,), task),
        image=torch.randint(256, (count, 3, height, width), dtype=torch.uint8), labels=labels,
        ignored=torch.zeros_like(labels, dtype=torch.bool) if ignored is None else ignored,
        coarse_mask=torch.zeros(count, 1, height, width, dtype=torch.bool),
    )  # fmt: skip


def make_data(shards, **options):
    return build_data(
        shards, tasks=TaskOptions(32), task_ratios={"entity": 1.0}, global_batch_size=2,
        steps_per_epoch=2, num_workers=0, samples_per_task=2, batch_size=2, **options,
    )  # fmt: skip


def make_model(**options) -> GSS:
    torch.manual_seed(0)
    return GSS(prior=SMALL, backbone=Backbone(width=4), optimizer=Optimizer(1e-3, 1), **options)


def make_trainer(folder, *callbacks, steps=2) -> L.Trainer:
    return L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, default_root_dir=folder, callbacks=list(callbacks),
    )  # fmt: skip


def fit(model, shards, folder) -> L.Trainer:
    evaluation = Evaluation(out=str(folder / "evaluation"), samples_per_task=2)
    trainer = make_trainer(folder, EMA(0.9), SampledValidation(), evaluation)
    trainer.fit(model, make_data(shards))
    return trainer
