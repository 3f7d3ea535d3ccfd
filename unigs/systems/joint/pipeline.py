"""``UniGSPipeline``: one call, conditions -> ``Prediction``.

In: a task, its pictures, masks and words. Out: the generated or kept image, the generated colormap
and its decoded masks, at the size of the input. Every component is a stock class, so the folder
that ``save_pretrained`` writes holds weights anyone can load without our code.

Stages: fit the input to the latent grid; encode what is known; denoise both streams together;
decode; split the colormap into masks; return to the input's size.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from unigs.codec import Decoded, Palette, decode_colormap, encode_colormap
from unigs.codec.guided_filter import filter_colormap
from unigs.records import Prediction, UnigsError, UnigsWarning, show
from unigs.systems.folders import check_digests, write_digests
from unigs.systems.joint.base import load_folder
from unigs.systems.joint.conditions import Known, check_inputs, encode_conditions, list_prompts
from unigs.systems.joint.denoiser import is_joint
from unigs.systems.joint.folders import list_files, read_settings
from unigs.systems.joint.sampler import draw_ensemble, plan_passes, sample_streams
from unigs.systems.joint.tokens import check_vocabulary, find_cut
from unigs.systems.joint.towers import LATENT_CHANNELS, FrozenTowers
from unigs.systems.pixels import fit_size, resize_labels, resize_pixels
from unigs.systems.sampling import Sampling, read_remembered, resolve_sampling
from unigs.tasks import RECIPES
from unigs.weights import in_words


class UniGSPipeline(DiffusionPipeline):
    """Generate and segment with one model.

    Args:
        vae: stock ``AutoencoderKL``.
        text_encoder: stock ``CLIPTextModel``.
        tokenizer: stock ``CLIPTokenizer``.
        unet: stock ``UNet2DConditionModel``, 13 channels in, 8 out, 4 task rows.
        scheduler: the training ``DDPMScheduler``; samplers are built from its config.
        palette: that the model was trained with, or its fields.
        sampling: how the model is best used, a ``Sampling`` or its fields by task and under
            ``all``; what a call asks for comes first.

    Example:
        >>> pipe = UniGSPipeline.load("runs/quickstart/pipeline")  # doctest: +SKIP
        >>> pipe("entity", image=picture).labels  # doctest: +SKIP
    """

    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any
    config: Any

    def __init__(
        self, vae, text_encoder, tokenizer, unet, scheduler, palette=None, sampling=None
    ) -> None:  # no annotations: the loader of diffusers warns of those it cannot read
        super().__init__()
        if not is_joint(unet):
            raise UnigsError(
                "expected the joint UNet (13 channels in, 8 out, 4 class rows), got "
                f"{unet.config.in_channels} in, {unet.config.out_channels} out"
            )
        self.palette = palette if isinstance(palette, Palette) else Palette(**(palette or {}))
        self.sampling = read_remembered(sampling or {}, "the pipeline")
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler
        )
        self.register_to_config(
            palette=asdict(self.palette),
            sampling={task: one.list_given() for task, one in self.sampling.items()},
        )

    @classmethod
    def load(cls, folder: str) -> UniGSPipeline:
        """Load a local folder; every part is checked, and nothing is fetched.

        Raises:
            UnigsError: the folder holds no pipeline, or one that is damaged or of other parts than
                ours; names the file.
        """
        with in_words("a pipeline folder", repr(folder)):
            settings = read_settings(Path(folder))
            check_vocabulary(Path(folder) / "tokenizer")  # its loss is told as what it is
            check_digests(Path(folder), list_files(Path(folder)))
            parts = load_folder(Path(folder))
        towers = parts.towers
        return cls(
            towers.vae, towers.text_encoder, towers.tokenizer, parts.unet, parts.scheduler,
            **settings,
        )  # fmt: skip

    def save_pretrained(self, save_directory, **options) -> None:
        """As diffusers does it, with the digests of all parts beside them."""
        super().save_pretrained(save_directory, **options)
        write_digests(Path(save_directory), list_files(Path(save_directory)))

    @property
    def towers(self) -> FrozenTowers:
        return FrozenTowers(self.vae, self.text_encoder, self.tokenizer)

    @property
    def side_px(self) -> int:
        """Side of the pictures that the model was trained on."""
        return self.unet.config.sample_size * self.towers.factor

    def resolve(self, task: str, asked: Sampling | None = None) -> Sampling:
        """How a task is sampled: as asked, else as this model remembers; see ``Sampling``."""
        return resolve_sampling(task, asked, self.sampling)

    @torch.no_grad()
    def __call__(
        self,
        task: str,
        *,
        image: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        coarse_mask: torch.Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        sampling: Sampling | None = None,
        indices: Sequence[int] | None = None,
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
            sampling: what to do in another way than the model remembers.
            indices: of the samples; with the seed they decide the noise; default 0...
            progress: show a bar over the steps.

        Returns:
            ``Prediction`` at the input's size. For inpainting the known pixels are the input's; for
            referring and entity the image is the input; entity masks cover the picture. The
            colormap is as generated.

        Raises:
            UnigsError: an unknown task, a missing or misshapen input, steps that no solver can run.
        """
        size = check_inputs(task, image, labels, coarse_mask).shape[-2:]
        how = self.resolve(task, sampling)
        inner = fit_size(size[0], size[1], how.processing_resolution, self.multiple_px)
        known = self._fit_inputs(task, image, labels, coarse_mask, prompt, indices, inner)
        order = list(range(len(known.tasks)) if indices is None else indices)
        streams, colormap = self._sample(task, known, how, order, progress)
        answer = self.decode(task, colormap, known.image, how)
        if not RECIPES[task].draws_picture:
            picture = image.to(colormap.device)  # type: ignore[union-attr]
        else:
            picture = resize_pixels(self.towers.decode_latents(streams[:, :LATENT_CHANNELS]), size)
            if coarse_mask is not None and image is not None:
                picture = torch.where(
                    coarse_mask.to(picture.device), picture, image.to(picture.device)
                )
        return Prediction(
            image=picture,
            colormap=resize_pixels(colormap, size),
            labels=resize_labels(answer.labels, size),
            scores=answer.scores,
        )

    def decode(
        self, task: str, colormap: torch.Tensor, image: torch.Tensor | None, how: Sampling
    ) -> Decoded:
        """Masks of the colormaps of a task.

        Args:
            task: whose.
            colormap: uint8 [B, 3, H, W].
            image: uint8 of that shape, the picture, where it is given.
            how: resolved; says the decoder, and whether the picture's outlines are used.
        """
        if how.guided_filter and not RECIPES[task].draws_picture:
            assert image is not None
            colormap = filter_colormap(colormap, image)
        decoder = how.decoder or "refined"
        return decode_colormap(colormap, self.palette, mode=RECIPES[task].mode, decoder=decoder)

    @property
    def multiple_px(self) -> int:
        """The sides at which the model runs are multiples of it."""
        return self.towers.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def _fit_inputs(self, task, image, labels, coarse_mask, prompt, indices, inner) -> Known:
        """What is known, on the device, at the size the model runs at."""
        device = self.unet.device
        batch = len(labels if image is None else image)
        mask = torch.ones((batch, *inner), dtype=torch.bool, device=device)
        if coarse_mask is not None:
            mask = resize_labels(coarse_mask[:, 0].to(device), inner)
        colormap = None
        if labels is not None and RECIPES[task].context == "colormap":
            fitted = resize_labels(labels.to(device), inner)
            seeds = range(batch) if indices is None else indices
            colormap = encode_colormap(fitted, self.palette, seeds=list(seeds))
        prompts = list_prompts(task, prompt, batch)
        self._tell_cut(prompts)
        return Known(
            tasks=[task] * batch,
            prompts=prompts,
            image=None if image is None else resize_pixels(image.to(device), inner),
            colormap=colormap,
            coarse_mask=mask[:, None],
        )

    def _tell_cut(self, prompts: Sequence[str]) -> None:
        """Warn of words that the text encoder never sees; once for the same prompts."""
        length = self.text_encoder.config.max_position_embeddings
        for prompt, words in find_cut(self.tokenizer, prompts, length).items():
            told = f"expected a prompt of at most {length} tokens; not read of it: {show(words)!r}"
            warnings.warn(f"{told}; the prompt: {show(prompt)!r}", UnigsWarning, stacklevel=2)

    def _sample(
        self, task: str, known: Known, how: Sampling, indices: Sequence[int], progress: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean streams [B, 8, h, w] of the last noise; the mean colormap uint8 [B, 3, H, W]."""
        towers = self.towers
        conditions = encode_conditions(towers, known)
        passes = plan_passes(task, towers, conditions, how)
        context = conditions.context
        shape = (2 * LATENT_CHANNELS, *context.shape[-2:])
        size = 1 if RECIPES[task].draws_picture else how.ensemble_size
        colormaps = []
        for noise in draw_ensemble(how.seed, indices, shape, size):  # type: ignore[arg-type]
            streams = sample_streams(
                self.unet, self.scheduler, passes, noise.to(context.device), how, task * progress
            )
            colormaps.append(towers.decode_latents(streams[:, LATENT_CHANNELS:]).float())
        return streams, torch.stack(colormaps).mean(0).round().to(torch.uint8)
