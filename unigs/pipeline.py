"""``UniGSPipeline``: one call, conditions -> ``Prediction``.

In: a task, its pictures, masks and words. Out: the generated or kept image, the generated colormap
and its decoded masks, at the size of the input. Every component is a stock class, so the folder
that ``save_pretrained`` writes holds weights anyone can load without our code.

Stages: fit the input to the latent grid; encode what is known; denoise both streams together;
decode; split the colormap into masks; return to the input's size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UniPCMultistepScheduler
from torch import nn
from tqdm import tqdm

from unigs.codec import Palette, decode_colormap, encode_colormap
from unigs.codec.guided_filter import filter_colormap
from unigs.diffusion.base import load_folder
from unigs.diffusion.conditions import check_inputs, list_prompts
from unigs.diffusion.denoiser import denoise, is_joint
from unigs.diffusion.encoders import (
    LATENT_CHANNELS,
    FrozenTowers,
    Latents,
    context_pixels,
    shrink_mask,
)
from unigs.diffusion.folders import (
    GivenStream,
    check_digests,
    check_settings,
    read_settings,
    write_digests,
)
from unigs.diffusion.objective import draw_noise, given_streams
from unigs.diffusion.tokens import find_cut
from unigs.diffusion.weights import in_words
from unigs.records import TASKS, Prediction, UnigsError, UnigsWarning, show
from unigs.tasks import RECIPES

Solver = Literal["ddim", "unipc"]


def make_sampler(scheduler, solver: Solver):
    """A sampling scheduler with the training schedule's betas and trailing timesteps.

    ``ddim`` is the paper's (200 steps); ``unipc`` is the few-step default. "Trailing" starts from
    the last training step, where samples are nearly noise, whatever the number of steps.
    """
    kind = {"ddim": DDIMScheduler, "unipc": UniPCMultistepScheduler}[solver]
    return kind.from_config(scheduler.config, timestep_spacing="trailing", clip_sample=False)


def fit_size(height: int, width: int, resolution_px: int | None, multiple: int) -> tuple[int, int]:
    """Model size of a picture: short side near ``resolution_px``, aspect kept, both multiples."""
    scale = (resolution_px or min(height, width)) / min(height, width) / multiple
    rows, cols = (max(1, round(side * scale)) * multiple for side in (height, width))
    return rows, cols


def resize_pixels(pixels: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """uint8 [B, 3, H, W] to another size, antialiased bicubic; the same tensor if it fits."""
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    out = nn.functional.interpolate(
        pixels.float(), size=tuple(size), mode="bicubic", antialias=True, align_corners=False
    )
    return out.round().clamp(0, 255).to(torch.uint8)


def resize_labels(labels: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Labels or masks [B, H, W] to another size, nearest; the dtype stays."""
    rows, cols = (
        ((torch.arange(new, device=labels.device) + 0.5) * old / new).long()
        for new, old in zip(size, labels.shape[-2:])
    )
    return labels[:, rows[:, None], cols]


class UniGSPipeline(DiffusionPipeline):
    """Generate and segment with one model.

    Args:
        vae: stock ``AutoencoderKL``.
        text_encoder: stock ``CLIPTextModel``.
        tokenizer: stock ``CLIPTokenizer``.
        unet: stock ``UNet2DConditionModel``, 13 channels in, 8 out, 4 task rows.
        scheduler: the training ``DDPMScheduler``; samplers are built from its config.
        palette_cells: cells per side of the palette the model was trained with.
        palette: how that palette assigns colours, the kind of a ``codec.Palette``.
        given_stream: how it was trained to see a known stream: denoised like the other, or clamped
            to its re-noised truth.
        sharpen: give colormaps the picture's outlines before they are decoded, where the picture is
            given; for pictures of flat colours, see ``codec.guided_filter``.

    Example:
        >>> pipe = UniGSPipeline.from_pretrained("runs/quickstart/pipeline")  # doctest: +SKIP
        >>> pipe("entity", image=picture).labels  # doctest: +SKIP
    """

    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any
    config: Any

    def __init__(
        self,
        vae,
        text_encoder,
        tokenizer,
        unet,
        scheduler,
        palette_cells: int = 11,
        palette: str = "location",  # not a Literal: the loader warns of annotations it cannot read
        given_stream: str = "denoise",
        sharpen: bool = False,
    ) -> None:
        super().__init__()
        if not is_joint(unet):
            raise UnigsError(
                "expected the joint UNet (13 channels in, 8 out, 4 class rows), got "
                f"{unet.config.in_channels} in, {unet.config.out_channels} out"
            )
        settings = {
            "palette_cells": palette_cells,
            "palette": palette,
            "given_stream": given_stream,
            "sharpen": sharpen,
        }
        check_settings(settings, "the pipeline")
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler
        )
        self.register_to_config(**settings)

    @classmethod
    def load(cls, folder: str) -> UniGSPipeline:
        """Load a local folder; every part is checked, and nothing is fetched.

        Raises:
            UnigsError: the folder holds no pipeline, or one that is damaged or of other parts than
                ours; names the file.
        """
        with in_words("a pipeline folder", repr(folder)):
            settings = read_settings(Path(folder))
            check_digests(Path(folder))
            parts = load_folder(Path(folder))
        towers = parts.towers
        return cls(
            towers.vae, towers.text_encoder, towers.tokenizer, parts.unet, parts.scheduler,
            **settings,
        )  # fmt: skip

    def save_pretrained(self, save_directory, **options) -> None:
        """As diffusers does it, with the digests of all parts beside them."""
        super().save_pretrained(save_directory, **options)
        write_digests(Path(save_directory))

    @property
    def towers(self) -> FrozenTowers:
        return FrozenTowers(self.vae, self.text_encoder, self.tokenizer)

    @torch.no_grad()
    def __call__(
        self,
        task: str,
        *,
        image: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        coarse_mask: torch.Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        steps: int = 20,
        solver: Solver = "unipc",
        guidance: float | None = None,
        entity_guidance: float | None = None,
        colormap_guidance: float = 1.0,
        given_stream: GivenStream | None = None,
        sharpen: bool | None = None,
        ensemble_size: int = 1,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        resolution_px: int | None = None,
        decode: dict[str, Any] | None = None,
        progress: bool = False,
    ) -> Prediction:
        """Run one task on a batch of inputs of one size.

        Args:
            task: ``inpainting``, ``synthesis``, ``referring`` or ``entity``.
            image: uint8 [B, 3, H, W]; needed by all tasks but synthesis.
            labels: int [B, H, W], the entities to synthesise, 0 = nothing; synthesis only.
            coarse_mask: bool [B, 1, H, W], True is to be filled or searched; inpainting needs it,
                referring takes the whole picture without it.
            prompt: one per input, in the words of ``tasks.write_prompt``; entity needs none.
            steps: sampling steps; with ``ddim`` a divisor of the training steps (paper: 200).
            solver: ``unipc`` for few steps, ``ddim`` for the paper's.
            guidance: classifier-free guidance of the image stream by the words; 1 is off, None
                takes the task's default.
            entity_guidance: the same by the entities to synthesise, away from a picture with none;
                synthesis only.
            colormap_guidance: of the colormap stream; above 1 it shifts the colours.
            given_stream: denoise a known stream like the other, or clamp it to its re-noised truth;
                None does as the model was trained.
            sharpen: decode the colormap with the picture's outlines; None does as the model says.
            ensemble_size: colormaps of this many noises are averaged where the picture is given, so
                that a mask depends less on the noise (test-time ensembling of Ke et al. 2024, for
                depth); best at few steps, where all noises lead to the same colours.
            seed, indices: together they decide the noise, sample by sample; indices default to 0..
            resolution_px: short side at which the model runs; None is the input's own.
            decode: arguments for ``codec.decode_colormap``.
            progress: show a bar over the steps.

        Returns:
            ``Prediction`` at the input's size. For inpainting the known pixels are the input's; for
            referring and entity the image is the input; entity masks cover the picture. The
            colormap is as generated, without ``sharpen``.

        Raises:
            UnigsError: an unknown task, a missing or misshapen input, an empty ensemble.
        """
        if ensemble_size < 1:
            raise UnigsError(f"expected an ensemble_size of 1 or more, got {ensemble_size}")
        known = check_inputs(task, image, labels, coarse_mask)
        batch, size = len(known), known.shape[-2:]
        inner = fit_size(size[0], size[1], resolution_px, self._multiple)
        indices = list(range(batch) if indices is None else indices)
        latents = self._encode_inputs(task, image, labels, coarse_mask, prompt, indices, inner)
        keeps_image = RECIPES[task].given == "image"
        members = ensemble_size if keeps_image else 1
        colormaps = []
        for noise in self._draw_ensemble(seed, indices, latents, members):
            streams = self._sample(
                task, latents, steps, solver, guidance, entity_guidance, colormap_guidance,
                given_stream or self.config.given_stream, noise, progress,
            )  # fmt: skip
            painted = self.towers.decode_latents(streams[:, LATENT_CHANNELS:])
            colormaps.append(painted.float())
        colormap = torch.stack(colormaps).mean(0).round().to(torch.uint8)
        mode = "foreground" if RECIPES[task].draws else "entity"
        options: dict[str, Any] = {"mode": mode, **(decode or {})}
        clear = colormap
        if keeps_image and (self.config.sharpen if sharpen is None else sharpen):
            guide = resize_pixels(image.to(colormap.device), inner)  # type: ignore[union-attr]
            clear = filter_colormap(colormap, guide)
        decoded = decode_colormap(clear, self.palette, **options)
        if keeps_image:
            picture = image.to(colormap.device)  # type: ignore[union-attr]
        else:
            made = self.towers.decode_latents(streams[:, :LATENT_CHANNELS])
            picture = resize_pixels(made, size)
            if coarse_mask is not None and image is not None:
                hole = coarse_mask.to(picture.device)
                picture = torch.where(hole, picture, image.to(picture.device))
        return Prediction(
            image=picture,
            colormap=resize_pixels(colormap, size),
            labels=resize_labels(decoded.labels, size),
            scores=decoded.scores,
        )

    @property
    def palette(self) -> Palette:
        """How this model's colormaps are painted."""
        return Palette(self.config.palette, self.config.palette_cells)

    @property
    def _multiple(self) -> int:
        return self.towers.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def _encode_inputs(self, task, image, labels, coarse_mask, prompt, indices, inner) -> Latents:
        device, batch = self.unet.device, len(indices)
        whole = torch.ones((batch, *inner), dtype=torch.bool, device=device)
        mask = whole if coarse_mask is None else resize_labels(coarse_mask[:, 0].to(device), inner)
        pixels = None if image is None else resize_pixels(image.to(device), inner)
        colormap = None
        if labels is not None and RECIPES[task].context == "colormap":
            fitted = resize_labels(labels.to(device), inner)
            colormap = encode_colormap(fitted, self.palette, seeds=indices)
        known = context_pixels(task, pixels, colormap, mask[:, None])  # float -1..1 [B, 3, H, W]
        context = self.towers.encode_pixels(known)
        prompts = list_prompts(task, prompt, batch)
        self._tell_cut(prompts)
        return Latents(
            streams=torch.cat([context, context], 1),  # what is known; only a given half is used
            mask=shrink_mask(mask[:, None], context.shape[-2:]),
            context=context,
            text=self.towers.encode_text(prompts),
            task=torch.full((batch,), TASKS.index(task), device=device),
        )

    def _tell_cut(self, prompts: Sequence[str]) -> None:
        """Warn of words that the text encoder never sees; once for the same prompts."""
        length = self.text_encoder.config.max_position_embeddings
        for prompt, words in find_cut(self.tokenizer, prompts, length).items():
            told = f"expected a prompt of at most {length} tokens; not read of it: {show(words)!r}"
            warnings.warn(f"{told}; the prompt: {show(prompt)!r}", UnigsWarning, stacklevel=2)

    def _draw_ensemble(self, seed, indices, latents, size: int) -> Iterator[torch.Tensor]:
        """Noise [B, 8, h, w] of each member; the first is that of a single sample."""
        for member in range(size):
            purpose = f"sampling {member}" if member else "sampling"
            noise = draw_noise(seed, indices, latents.streams.shape[1:], purpose)
            yield noise.to(latents.streams.device)

    def _sample(
        self, task, latents, steps, solver, guidance, entity_guidance, colormap_guidance,
        given_stream, noise, progress,
    ) -> torch.Tensor:  # fmt: skip
        """Denoise both streams from noise, both float32 [B, 8, h, w]."""
        device = latents.context.device
        sampler = make_sampler(self.scheduler, solver)
        total = sampler.config.num_train_timesteps
        if solver == "ddim" and total % steps:
            raise UnigsError(f"expected DDIM steps that divide {total}, got {steps}")
        sampler.set_timesteps(steps, device=device)
        passes = self._plan_passes(task, latents, guidance, entity_guidance, colormap_guidance)
        clamped = given_streams(latents.task) if given_stream == "clamp" else None

        def hold(state: torch.Tensor, known: Latents, t: torch.Tensor) -> torch.Tensor:
            if clamped is None:
                return state
            truth = sampler.add_noise(known.streams, noise, t.expand(len(noise)))
            return torch.where(clamped, truth, state)

        state = noise * sampler.init_noise_sigma
        for t in tqdm(sampler.timesteps, desc=task, disable=not progress, leave=False):
            output = sum(
                weight * self._predict(hold(state, known, t), t, known) for known, weight in passes
            )
            state = sampler.step(output, t, state, return_dict=False)[0]
        return state if clamped is None else torch.where(clamped, latents.streams, state)

    def _plan_passes(
        self, task, latents, guidance, entity_guidance, colormap_guidance
    ) -> list[tuple[Latents, torch.Tensor]]:
        """What the network is told in each pass of a step, and how its output weighs [1, 8, 1, 1].

        Everything; no words; neither words nor entities (Brooks et al. 2023, Eq. 3). The weights
        sum to 1, and passes that weigh nothing are left out.
        """
        recipe = RECIPES[task]
        words = recipe.guidance if guidance is None else guidance
        entities = recipe.entity_guidance if entity_guidance is None else entity_guidance
        if recipe.given != "colormap":
            entities = 1.0
        image = (words, entities - words, 1 - entities)
        colormap = (colormap_guidance, 1 - colormap_guidance, 0.0)
        device = latents.context.device
        passes = []
        for place, scales in enumerate(zip(image, colormap)):
            if not any(scales):
                continue
            known = latents
            if place > 0:
                silence = self.towers.encode_text([""]).expand_as(latents.text)
                known = replace(known, text=silence)
            if place > 1:
                size = [self.towers.factor * side for side in latents.context.shape[-2:]]
                black = torch.zeros((1, 3, *size), dtype=torch.uint8, device=device)
                empty = self.towers.encode_pixels(black).expand_as(latents.context)
                known = replace(known, context=empty, streams=torch.cat([empty, empty], 1))
            weight = torch.tensor(scales, device=device).repeat_interleave(LATENT_CHANNELS)
            passes.append((known, weight[None, :, None, None]))
        return passes

    def _predict(self, state: torch.Tensor, t: torch.Tensor, latents: Latents) -> torch.Tensor:
        dtype = self.unet.dtype
        fields = {k: getattr(latents, k) for k in ("streams", "mask", "context", "text")}
        cast = Latents(**{k: v.to(dtype) for k, v in fields.items()}, task=latents.task)
        return denoise(self.unet, state.to(dtype), t, cast).float()
