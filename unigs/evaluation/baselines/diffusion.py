"""Stock Stable Diffusion: inpainting (Table 3), with a ControlNet or a T2I-Adapter (Table 4).

They draw and do not segment. Weights lie in diffusers' layout, in safetensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unigs.evaluation.baselines.colours import ClassPalette, load_colours
from unigs.noise import draw_noise
from unigs.records import Batch, Prediction, UnigsError
from unigs.systems.joint.base import check_files
from unigs.tasks import english_list
from unigs.weights import in_words, load_module, resolve_source

INPAINTING = "stable-diffusion-v1-5/stable-diffusion-inpainting"
STEM = "diffusion_pytorch_model"

Device = str | torch.device


class DrawingBaseline(ABC):
    """A stock pipeline that draws what a batch asks for; it finds no masks.

    Args:
        pipeline: of diffusers.
        steps: DDIM steps.
        guidance: classifier-free guidance; the pipelines' own default is 7.5.
        seed: with a sample's index it decides the noise.
    """

    name: str
    tasks: tuple[str, ...]

    def __init__(
        self, pipeline: Any, steps: int = 50, guidance: float = 7.5, seed: int = 0
    ) -> None:
        self.pipeline, self.steps, self.guidance, self.seed = pipeline, steps, guidance, seed
        self.options: dict[str, Any] = {"steps": steps, "guidance": guidance, "seed": seed}
        pipeline.set_progress_bar_config(disable=True)

    def __call__(self, batch: Batch) -> Prediction:
        pipe = self.pipeline
        height, width = batch.image.shape[-2:]
        cell = pipe.vae_scale_factor
        shape = (pipe.vae.config.latent_channels, height // cell, width // cell)
        noise = draw_noise(self.seed, batch.index.tolist(), shape, "sampling")
        colormap, given = self.prepare(batch)
        made = pipe(
            prompt=[english_list(list(dict.fromkeys(asked))) for asked in batch.asked],
            height=height,
            width=width,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            latents=noise.to(pipe.unet.device, pipe.unet.dtype),
            output_type="np",  # the only one that all three know besides PIL
            **given,
        ).images
        drawn = torch.from_numpy((made * 255).round().astype(np.uint8)).permute(0, 3, 1, 2)
        return Prediction(
            image=torch.where(batch.coarse_mask.cpu(), drawn, batch.image.cpu()),
            colormap=colormap.cpu(),
            labels=torch.zeros_like(batch.labels).cpu(),
            scores=[[] for _ in batch.keys],
            has_masks=False,
        )

    @abstractmethod
    def prepare(self, batch: Batch) -> tuple[torch.Tensor, dict[str, Any]]:
        """The colormap that it draws from, black if it needs none, uint8 [B, 3, H, W]; what the
        pipeline takes besides words and noise.
        """


class InpaintingBaseline(DrawingBaseline):
    """Stable Diffusion inpainting (Table 3, first row): ``StableDiffusionInpaintPipeline``."""

    name = "sd-inpainting"
    tasks = ("inpainting",)

    def prepare(self, batch: Batch) -> tuple[torch.Tensor, dict[str, Any]]:
        device = self.pipeline.unet.device
        return torch.zeros_like(batch.image), {
            "image": batch.image.to(device).float() / 255,
            "mask_image": batch.coarse_mask.to(device).float(),
        }


class SynthesisBaseline(DrawingBaseline):
    """Stable Diffusion that reads a class map: by ControlNet or T2I-Adapter (Table 4).

    Args:
        pipeline: ``StableDiffusionControlNetPipeline`` or ``StableDiffusionAdapterPipeline``.
        name: for tables.
        colours: those that its add-on learnt to read.
        options: further arguments of :class:`DrawingBaseline`.
    """

    tasks = ("synthesis",)

    def __init__(self, pipeline: Any, name: str, colours: ClassPalette, **options: Any) -> None:
        super().__init__(pipeline, **options)
        self.name, self.colours = name, colours
        self.options["colours"] = colours

    def prepare(self, batch: Batch) -> tuple[torch.Tensor, dict[str, Any]]:
        colormap = load_colours(self.colours).paint(batch.labels, batch.names)
        return colormap, {"image": colormap.to(self.pipeline.unet.device).float() / 255}


def load_inpainting(
    name: str | Path = INPAINTING,
    device: Device = "cpu",
    offline: bool = True,
    **options: Any,
) -> InpaintingBaseline:
    """Load Stable Diffusion inpainting from a folder or the hub, with DDIM.

    Args:
        name: a local folder, or an id of the hub.
        device: where it runs.
        offline: read the hub's local cache only; False allows the download.
        options: further arguments of :class:`InpaintingBaseline`.

    Raises:
        UnigsError: nothing there, or no inpainting network.
    """
    from diffusers import StableDiffusionInpaintPipeline

    pipeline = load_pipeline(
        StableDiffusionInpaintPipeline, name, offline, "sd-inpainting=FOLDER", channels=9
    )
    return InpaintingBaseline(pipeline.to(device), **options)


def load_controlnet(
    names: Sequence[str | Path],
    device: Device = "cpu",
    offline: bool = True,
    colours: ClassPalette = "ade20k",
    name: str = "controlnet",
    **options: Any,
) -> SynthesisBaseline:
    """Load Stable Diffusion and a ControlNet that reads class maps, with DDIM.

    Args:
        names: base and ControlNet, local folders or ids of the hub.
        device: where it runs.
        offline: read the hub's local cache only; False allows the download.
        colours: those that the ControlNet learnt: ``ade20k`` every version, ``coco`` 1.1 as well.
        name: for tables.
        options: further arguments of :class:`DrawingBaseline`.

    Raises:
        UnigsError: nothing there, another network, or two that do not fit each other.
    """
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    base, addon = names
    asked = f"{name}=BASE+CONTROLNET"
    network = load_addon(ControlNetModel, addon, offline, asked)
    pipeline = load_pipeline(
        StableDiffusionControlNetPipeline, base, offline, asked, controlnet=network
    )
    unet, control = pipeline.unet.config, network.config
    fields = ("cross_attention_dim", "block_out_channels")
    halvings = len(control.conditioning_embedding_out_channels) - 1
    facts = {field: (unet[field], control[field]) for field in fields}
    check_fit(facts | {"scale of latents": (pipeline.vae_scale_factor, 2**halvings)}, addon)
    return SynthesisBaseline(pipeline.to(device), name, colours, **options)


def load_adapter(
    names: Sequence[str | Path],
    device: Device = "cpu",
    offline: bool = True,
    **options: Any,
) -> SynthesisBaseline:
    """Load Stable Diffusion and a T2I-Adapter that reads class maps, with DDIM.

    Args:
        names: base and adapter, local folders or ids of the hub.
        device: where it runs.
        offline: read the hub's local cache only; False allows the download.
        options: further arguments of :class:`DrawingBaseline`.

    Raises:
        UnigsError: nothing there, another network, or two that do not fit each other.
    """
    from diffusers import StableDiffusionAdapterPipeline, T2IAdapter

    base, addon = names
    asked = "t2i-adapter=BASE+ADAPTER"
    network = load_addon(T2IAdapter, addon, offline, asked)
    if network.config.in_channels != 3:
        raise UnigsError(
            f"expected an adapter that reads colours, 3 channels; got {network.config.in_channels} "
            f"channels; in {addon}"
        )
    pipeline = load_pipeline(StableDiffusionAdapterPipeline, base, offline, asked, adapter=network)
    facts = {
        "block_out_channels": (pipeline.unet.config.block_out_channels, network.config.channels),
        "scale of latents": (pipeline.vae_scale_factor, network.config.downscale_factor),
    }
    check_fit(facts, addon)
    return SynthesisBaseline(pipeline.to(device), "t2i-adapter", "coco-stuff", **options)


def load_pipeline(
    kind: Any, name: str | Path, offline: bool, asked: str, channels: int = 4, **parts: Any
) -> Any:
    """A stock pipeline with DDIM.

    Args:
        kind: class of diffusers.
        name: a local folder, or an id of the hub.
        offline: read the hub's local cache only.
        asked: how it was asked for, for messages.
        channels: that its UNet must take.
        parts: networks that do not lie in the folder.

    Raises:
        UnigsError: nothing there, damaged, or a UNet of another number of channels.
    """
    from diffusers import DDIMScheduler

    where, offline = resolve_source(name, offline)
    if Path(where).is_dir():
        check_files(Path(where))
    with in_words(
        f"{asked} in diffusers' layout, or an id of the hub (downloaded only when asked to)", name
    ):
        pipeline = kind.from_pretrained(
            where,
            local_files_only=offline,
            use_safetensors=True,
            safety_checker=None,
            requires_safety_checker=False,
            **parts,
        )
    found = pipeline.unet.config.in_channels
    if found != channels:
        what = "an inpainting UNet" if channels == 9 else "the UNet of a text-to-image base"
        raise UnigsError(f"expected {what} of {channels} channels; got {found}; in {name}")
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing"
    )
    return pipeline


def load_addon(kind: Any, name: str | Path, offline: bool, asked: str) -> Any:
    """A network that is added to a base, from a local folder or the hub.

    Raises:
        UnigsError: nothing there, damaged, or a network of another kind.
    """
    where, offline = resolve_source(name, offline)
    if Path(where).is_dir():
        return load_module(kind, Path(where), STEM)
    with in_words(
        f"{asked} in diffusers' layout, or ids of the hub (downloaded only when asked to)", name
    ):
        return kind.from_pretrained(where, local_files_only=offline, use_safetensors=True)


def check_fit(facts: Mapping[str, tuple[Any, Any]], where: str | Path) -> None:
    """Refuse an add-on of another base.

    Args:
        facts: what the base has and what the add-on was made for, by name.
        where: the add-on, for the message.

    Raises:
        UnigsError: names what differs.
    """
    for what, both in facts.items():
        base, addon = (list(one) if isinstance(one, tuple) else one for one in both)
        if base != addon:
            raise UnigsError(
                f"expected an add-on for the base's {what} of {base}; got one for {addon}; in "
                f"{where}"
            )
