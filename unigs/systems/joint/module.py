"""The joint one-to-many model as a ``System``: Eq. 2 over a batch of mixed tasks.

What a step does: paint and encode the batch once, add noise keyed by (seed, index), denoise both
streams, weigh the two errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from diffusers.training_utils import cast_training_params

from unigs.codec import Palette
from unigs.records import Batch, Latents, UnigsError
from unigs.runs import Rule
from unigs.sharding import FSDP2
from unigs.systems.adapters import Adapters, adapt
from unigs.systems.joint.base import load_components, locate_base, resolve_prediction_type
from unigs.systems.joint.conditions import add_words, encode_training, read_batch
from unigs.systems.joint.denoiser import NEW_LAYERS, merge_unet, widen_unet
from unigs.systems.joint.objective import Objective, measure_losses, weigh_cells
from unigs.systems.joint.pipeline import UniGSPipeline
from unigs.systems.joint.predictor import JointPredictor
from unigs.systems.joint.towers import LATENT_CHANNELS
from unigs.systems.sampling import Sampling, read_remembered
from unigs.systems.system import Optimizer, System

Compile = Literal["none", "blocks", "whole"]


@dataclass(frozen=True)  # no slots: the command line reads its fields
class Compute:
    """How the network is computed; changes no result but by rounding.

    Args:
        gradient_checkpointing: recompute activations in the backward pass; about 30 % slower, far
            less memory.
        compile: ``torch.compile`` of the UNet for training, in place: ``whole``, or its transformer
            ``blocks`` one by one, which takes less time to compile.
        channels_last: NHWC memory format for UNet and VAE, faster for convolutions.
        towers_dtype: precision of the frozen VAE and text encoder.
        encode_chunk: pictures that the VAE encodes at a time, at 512 px 0.3 GiB each; None: all.
    """

    gradient_checkpointing: bool = False
    compile: Compile = "none"
    channels_last: bool = False
    towers_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    encode_chunk: int | None = None

    def __post_init__(self) -> None:
        if self.compile not in get_args(Compile):
            raise UnigsError(
                f"expected {', '.join(get_args(Compile))}, got {self.compile!r}, at "
                "model.compute.compile"
            )
        if self.encode_chunk is not None and self.encode_chunk < 1:
            raise UnigsError(
                f"expected at least 1 picture at a time, got {self.encode_chunk}, "
                "at model.compute.encode_chunk"
            )


MOVED = {
    "palette": "palette.kind",
    "palette_cells": "palette.cells",
    "given_stream": "sampling.all.given_stream",
    "sharpen": "sampling.all.guided_filter",
    **{
        name: f"objective.{name}"
        for name in (
            "prediction_type", "image_weight", "colormap_weight", "given_weight",
            "min_snr_gamma", "snr_floor", "mask_timestep_shift", "size_balance",
        )
    },
    **{
        name: f"optimizer.{name}"
        for name in ("learning_rate", "warmup_steps", "decay_steps", "weight_decay", "betas")
    },
    **{
        name: f"compute.{name}"
        for name in ("gradient_checkpointing", "compile", "channels_last", "towers_dtype")
    },
}  # fmt: skip
"""Where the flat options of checkpoints of before the records stand now."""


class UniGS(System):
    """The joint one-to-many model.

    Args:
        base: diffusers folder, single file or hub id whose UNet is widened to 13 channels in and 8
            out, or a joint model to go on from: a folder that ``unigs export`` wrote, or ``tiny``,
            which ships. See ``unigs base --help`` for folders of random weights.
        revision: hub revision to pin.
        palette: by which entities are painted; it also decides how many a picture may have.
        objective: what the network is asked for, and how its errors weigh.
        optimizer: rate, warm-up and decay.
        sampling: how the trained model is best used, by task and under ``all``; it travels with
            the exported folder. No part of the training.
        compute: memory against speed.
        adapters: train LoRA and the layers that Stable Diffusion lacks; None: every weight.
    """

    NETWORK = "unet"
    MOVED = MOVED
    ON_RESUME: ClassVar[dict[str, Rule]] = {
        **System.ON_RESUME,
        **dict.fromkeys(("model.base", "model.revision", "model.objective"), "warned"),
        "model.objective.prediction_type": "refused",
        "model.compute": "taken",
        "model.compute.towers_dtype": "warned",
    }

    def __init__(
        self,
        base: str,
        revision: str | None = None,
        palette: Palette = Palette(),
        objective: Objective = Objective(),  # noqa: B008
        optimizer: Optimizer = Optimizer(),  # noqa: B008
        sampling: dict[str, Sampling] = {},  # noqa: B006 (never changed)
        compute: Compute = Compute(),
        adapters: Adapters | None = None,
    ) -> None:
        super().__init__()
        self.base, self.revision = base, revision
        self.palette, self.objective, self.optimizer = palette, objective, optimizer
        self.sampling = read_remembered(sampling, "model.sampling")
        self.compute, self.adapters = compute, adapters
        self.keep_options(
            base=base, revision=revision, palette=palette, objective=objective,
            optimizer=optimizer, sampling={k: v.list_given() for k, v in self.sampling.items()},
            compute=compute, adapters=adapters,
        )  # fmt: skip
        self.unet: Any = None
        self.towers: Any = None
        self.scheduler: Any = None

    @classmethod
    def rebuild(cls, stored: Mapping[str, Any], base: str | None, where: Path) -> UniGS:
        """A new module by the hyperparameters in a checkpoint; see ``System.rebuild``."""
        located = find_base(stored, base, where)
        kinds = {"palette": Palette, "objective": Objective, "optimizer": Optimizer}
        kinds |= {"compute": Compute, "adapters": Adapters}
        options = upgrade_options(stored) | located
        try:
            records = {k: kinds[k](**v) for k, v in options.items() if k in kinds and v is not None}
            return cls(**options | records)
        except UnigsError as error:
            raise UnigsError(f"{error}, of {where}") from error

    @property
    def max_painted(self) -> int:
        return self.palette.capacity

    @property
    def loss_weights(self) -> Mapping[str, float]:  # type: ignore[override]
        weights = self.objective
        return {"image": weights.image_weight, "colormap": weights.colormap_weight}

    def describe(self) -> str:
        return f"base {self.base!r}"

    def setup(self, stage: str) -> None:
        """Refuse precisions that the weights do not go with; see ``Learner.setup``."""
        super().setup(stage)
        if self.adapters:
            self.adapters.check_precision(str(self.trainer.precision))

    def configure_model(self) -> None:
        """Load the base and widen its UNet; once, when the trainer or a checkpoint asks for it."""
        if self.unet is not None:
            return
        components = load_components(self.base, self.revision)
        self.unet = widen_unet(components.unet)
        self.towers = components.towers.to(getattr(torch, self.compute.towers_dtype))
        self.towers.encode_chunk = self.compute.encode_chunk
        self.scheduler = components.scheduler
        asked = self.objective.prediction_type
        kind = resolve_prediction_type(asked, self.scheduler, self.base)
        self.scheduler.register_to_config(prediction_type=kind)
        self.objective = replace(self.objective, prediction_type=kind)  # type: ignore[arg-type]
        self.hparams["objective"]["prediction_type"] = kind
        if self.adapters:
            adapt(self.unet, self.adapters, NEW_LAYERS)
        cast_training_params(self.unet, torch.float32)
        if self.compute.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if self.compute.channels_last:
            self.unet.to(memory_format=torch.channels_last)
            self.towers.vae.to(memory_format=torch.channels_last)

    # --- compilation: of training alone, whose shapes are always the same ---

    def on_fit_start(self) -> None:
        """Compile what trains, in place, so that names stay as they are.

        Raises:
            UnigsError: the whole network is asked for, and is sharded.
        """
        super().on_fit_start()
        if self.compute.compile == "none":
            return
        torch.compiler.set_stance("default")
        # DDP would cut each graph at its buckets, and cannot where activations are checkpointed.
        torch._dynamo.config.optimize_ddp = False
        if self.compute.compile == "blocks":
            self.unet.compile_repeated_blocks(fullgraph=True, dynamic=False)
        elif isinstance(self.trainer.strategy, FSDP2):
            raise UnigsError(
                "expected none or blocks with FSDP2, whose blocks are gathered between graphs, got "
                "whole, at model.compute.compile"
            )
        else:
            self.unet.compile(fullgraph=True, dynamic=False)

    def on_validation_start(self) -> None:
        """Let batches of other sizes use no graph, rather than make one each."""
        torch.compiler.set_stance("eager_on_recompile")

    def on_validation_end(self) -> None:
        torch.compiler.set_stance("default")

    def on_fit_end(self) -> None:
        """Leave a network that answers as it is."""
        for part in self.unet.modules():
            part._compiled_call_impl = None

    def describe_frozen(self) -> dict[str, Any]:
        self.configure_model()
        return {
            "palette": self.palette,
            "objective": {"size_balance": self.objective.size_balance},
            "compute": {"towers_dtype": self.compute.towers_dtype},
            "vae": self.towers.digest_vae(),
        }

    def encode(self, batch: Batch) -> Latents:
        """Paint, encode and weigh a batch: all of a step that is neither trained nor drawn anew."""
        clean, context, mask = encode_training(self.towers, read_batch(batch, self.palette))
        known, weight = weigh_cells(self.objective, batch, (clean.shape[-2], clean.shape[-1]))
        return Latents(
            batch.keys, batch.prompts, batch.seed, batch.index, batch.task,
            clean, context, mask, known, weight, batch.noise,
        )  # fmt: skip

    def shape_noise(self, side_px: int) -> tuple[int, ...]:
        self.configure_model()
        cells = side_px // self.towers.factor
        return 2 * LATENT_CHANNELS, cells, cells

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        return self.towers.encode_pixels(images)

    def losses(self, batch: Batch | Latents) -> dict[str, torch.Tensor]:
        """Errors of the image and of the colormap stream, float32 [B] each."""
        latents = batch if isinstance(batch, Latents) else self.encode(batch)
        told = (latents.mask, latents.context, latents.prompts, latents.task)
        conditions = add_words(self.towers, *told)
        return measure_losses(self.objective, self.unet, self.scheduler, latents, conditions)

    def make_pipeline(self) -> UniGSPipeline:
        """A pipeline over the live components, without a copy but where adapters are merged."""
        towers, unet = self.towers, merge_unet(self.unet) if self.adapters else self.unet
        return UniGSPipeline(
            towers.vae, towers.text_encoder, towers.tokenizer, unet, self.scheduler,
            palette=self.palette, sampling=self.sampling,
        )  # fmt: skip

    def make_predictor(self, sampling: Sampling | None = None) -> JointPredictor:
        return JointPredictor(self.make_pipeline(), sampling=sampling)


def find_base(settings: Mapping[str, Any], base: str | None, path: Path) -> dict[str, Any]:
    """Settings of the base: where it lies here. The hub is asked only for what a user typed.

    Raises:
        UnigsError: not found.
    """
    if base is not None:
        return {"base": base, "revision": None}
    named, revision = settings.get("base"), settings.get("revision")
    try:
        if not isinstance(named, str) or not isinstance(revision, str | None):
            raise UnigsError(f"expected the name of a base, got {named!r} ({revision!r})")
        return {"base": str(locate_base(named, revision, download=False)), "revision": None}
    except UnigsError as error:
        raise UnigsError(f"{error}, named by {path}; give its base with --base") from error


def upgrade_options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments out of a checkpoint, also of one with flat options."""
    new = dict(stored) if isinstance(stored.get("palette"), Mapping) else sort_options(stored)
    compute = new.get("compute")
    if isinstance(compute, Mapping) and isinstance(compute.get("compile"), bool):
        new["compute"] = {**compute, "compile": "whole" if compute["compile"] else "none"}
    return new


def sort_options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Flat options, each in its record."""
    new: dict[str, Any] = {}
    for name, value in stored.items():
        if name == "seed":  # the data's alone
            continue
        *path, last = MOVED.get(name, name).split(".")
        room = new
        for step in path:
            room = room.setdefault(step, {})
        room[last] = value
    return new
