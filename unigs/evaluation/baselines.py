"""Other people's models behind ``Predictor``: Stable Diffusion inpainting, Mask2Former.

They get the same pictures, masks and words as ours. Weights come from a local folder, or from the
hub when that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unigs.codec import encode_colormap
from unigs.metrics.segmenter import MASK2FORMER, Segmenter, load_segmenter
from unigs.records import Batch, Prediction, UnigsError
from unigs.systems.joint.base import check_files, read_hub_id
from unigs.systems.noise import draw_noise
from unigs.systems.predictor import name_task
from unigs.tasks import RECIPES, english_list, speak_category

INPAINTING = "stable-diffusion-v1-5/stable-diffusion-inpainting"


class InpaintingBaseline:
    """Stable Diffusion inpainting (Table 3, first row); it draws and does not segment.

    Args:
        pipeline: ``StableDiffusionInpaintPipeline``.
        steps: DDIM steps.
        guidance: classifier-free guidance; the pipeline's own default is 7.5.
        seed: with a sample's index it decides the noise.
    """

    name = "sd-inpainting"
    tasks = ("inpainting",)

    def __init__(
        self, pipeline: Any, steps: int = 50, guidance: float = 7.5, seed: int = 0
    ) -> None:
        self.pipeline, self.steps, self.guidance, self.seed = pipeline, steps, guidance, seed
        self.options = {"steps": steps, "guidance": guidance, "seed": seed}
        pipeline.set_progress_bar_config(disable=True)

    def __call__(self, batch: Batch) -> Prediction:
        pipe = self.pipeline
        height, width = batch.image.shape[-2:]
        cell = pipe.vae_scale_factor
        shape = (pipe.vae.config.latent_channels, height // cell, width // cell)
        noise = draw_noise(self.seed, batch.index.tolist(), shape, "sampling")
        device = pipe.unet.device
        made = pipe(
            prompt=[english_list(list(dict.fromkeys(asked))) for asked in batch.asked],
            image=batch.image.to(device).float() / 255,
            mask_image=batch.coarse_mask.to(device).float(),
            height=height,
            width=width,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            latents=noise.to(device, pipe.unet.dtype),
            output_type="pt",
        ).images
        drawn = (made.float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()
        image = torch.where(batch.coarse_mask.cpu(), drawn, batch.image.cpu())
        return Prediction(
            image=image,
            colormap=torch.zeros_like(image),
            labels=torch.zeros_like(batch.labels).cpu(),
            scores=[[] for _ in batch.keys],
        )


class Mask2FormerBaseline:
    """Mask2Former for referring (Table 5) and entity segmentation.

    For referring it keeps the segments whose class the prompt names and of which more than half
    lies inside the coarse mask.

    Args:
        segmenter: the network.
    """

    name = "mask2former"
    tasks = ("referring", "entity")

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    def __call__(self, batch: Batch) -> Prediction:
        found = self.segmenter(batch.image)
        labels, scores = found.labels, found.scores
        names = [[speak_category(name) for name in said] for said in found.names]
        if RECIPES[name_task(batch)].draws:
            chosen = [
                keep_named(labels[i], names[i], batch.asked[i], mask)
                for i, mask in enumerate(batch.coarse_mask[:, 0].cpu())
            ]
            labels = torch.stack([one for one, _ in chosen])
            scores = [[scores[i][k - 1] for k in kept] for i, (_, kept) in enumerate(chosen)]
            names = [[names[i][k - 1] for k in kept] for i, (_, kept) in enumerate(chosen)]
        return Prediction(batch.image, encode_colormap(labels), labels, scores, names)


def keep_named(
    labels: torch.Tensor,
    names: Sequence[str],
    asked: Sequence[str],
    coarse_mask: torch.Tensor,
) -> tuple[torch.Tensor, list[int]]:
    """Segments of the names that were asked for and that lie mostly inside the coarse mask.

    Args:
        labels: int32 [H, W].
        names: spoken, of label k at ``names[k - 1]``.
        asked: spoken names.
        coarse_mask: bool [H, W].

    Returns:
        int32 [H, W] with labels 1..M, and the labels that they had.
    """
    count = len(names) + 1
    whole = np.bincount(labels.flatten(), minlength=count)
    inside = np.bincount(labels[coarse_mask], minlength=count)
    table = torch.zeros(count, dtype=torch.int32)
    kept: list[int] = []
    for label, name in enumerate(names, 1):
        if name in asked and 2 * inside[label] > whole[label]:
            kept.append(label)
            table[label] = len(kept)
    return table[labels.long()], kept


def load_inpainting(
    name: str | Path = INPAINTING,
    device: str | torch.device = "cpu",
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
    from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline

    where = str(name)
    if Path(name).is_dir():
        check_files(Path(name))
    elif read_hub_id(where) is None:  # a path that is not there is nothing to ask the hub for
        offline = True
    try:
        pipeline = StableDiffusionInpaintPipeline.from_pretrained(
            where.removeprefix("hub:"),
            local_files_only=offline,
            use_safetensors=True,
            safety_checker=None,
        )
    except Exception as error:  # of damaged files loaders say nearly anything
        raise UnigsError(
            "expected sd-inpainting=FOLDER in diffusers' layout, or an id of the hub (downloaded "
            f"only when asked to); got {name}; {error}"
        ) from error
    channels = pipeline.unet.config.in_channels
    if channels != 9:
        raise UnigsError(f"expected an inpainting UNet of 9 channels; got {channels}; in {name}")
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing"
    )
    return InpaintingBaseline(pipeline.to(device), **options)


def load_mask2former(
    name: str | Path = MASK2FORMER, device: str | torch.device = "cpu", offline: bool = True
) -> Mask2FormerBaseline:
    """Load Mask2Former; see :func:`unigs.metrics.segmenter.load_segmenter`."""
    return Mask2FormerBaseline(load_segmenter(name, device, offline))
