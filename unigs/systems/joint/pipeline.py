"""``UniGSPipeline``: one call, pictures and words -> pictures and masks.

A call takes and gives what pipelines of diffusers do. Beneath it, :meth:`UniGSPipeline.predict` is
the exact path of training and evaluation: tensors of one size in, a ``Prediction`` out. Every
component is a stock class, so the folder that ``save_pretrained`` writes holds weights anyone can
load without our code.

Stages: fit the input to the latent grid; encode what is known; denoise both streams together;
decode; split the colormap into masks; return to the input's size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from unigs.codec import Decoded, Palette, decode_colormap, encode_colormap
from unigs.codec.guided_filter import filter_colormap
from unigs.files import new_file
from unigs.records import Prediction, UnigsError, UnigsWarning, show
from unigs.systems.folders import check_digests, write_digests
from unigs.systems.joint.base import load_folder
from unigs.systems.joint.conditions import Known, check_inputs, encode_conditions, list_prompts
from unigs.systems.joint.denoiser import is_joint
from unigs.systems.joint.folders import fetch_pipeline, is_hub_id, list_files, read_settings
from unigs.systems.joint.manners import Asked, gather_asked, stack_asked
from unigs.systems.joint.output import OUTPUT_TYPES, UniGSOutput, collect_output
from unigs.systems.joint.sampler import (
    OnStep,
    check_steps,
    draw_ensemble,
    plan_passes,
    sample_streams,
)
from unigs.systems.joint.tokens import check_vocabulary, find_cut
from unigs.systems.joint.towers import LATENT_CHANNELS, FrozenTowers
from unigs.systems.pixels import fit_size, resize_labels, resize_pixels
from unigs.systems.sampling import Sampling, read_options, read_remembered, resolve_sampling
from unigs.tasks import RECIPES
from unigs.weights import in_words, locate_shipped

DOOR = "from unigs import UniGSPipeline  # read by: custom_pipeline=<this folder>\n"
"""All of the folder's ``pipeline.py``, by which diffusers finds this class."""

FAR = 4
"""Pictures whose short side is this many times what the model learnt are warned of."""


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
        >>> pipe = UniGSPipeline.from_pretrained("tiny")  # doctest: +SKIP
        >>> pipe("referring", image=picture, prompt="star").labels[0]  # doctest: +SKIP
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"

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
        self._told_size = False
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

    @classmethod
    def from_pretrained(cls, source="tiny", torch_dtype=None, **hub) -> UniGSPipeline:
        """A pipeline from a folder, from a hub, or the one that ships.

        Args:
            source: folder that ``unigs export`` wrote, a hub id of one, or ``tiny``, made for
                drawings of 64 px. A hub is asked for an id only, never for a folder.
            torch_dtype: of all weights; float32 by default.
            hub: ``revision``, ``cache_dir``, ``token``, ``local_files_only`` of the hub's download.

        Raises:
            UnigsError: no such folder, or no pipeline of ours there; names the file.
        """
        folder = locate_shipped(source)
        if not folder.is_dir() and is_hub_id(str(source)):
            folder = fetch_pipeline(str(source), **hub)
        pipe = cls.load(str(folder))
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            torch.nn.Module.to(
                part, torch_dtype or torch.float32
            )  # diffusers' own warns for nothing
        return pipe

    def save_pretrained(self, save_directory, **options) -> None:
        """As diffusers does it, with digests of all parts and a door for ``custom_pipeline``."""
        super().save_pretrained(save_directory, **options)
        with new_file(Path(save_directory) / "pipeline.py") as temp:
            temp.write_text(DOOR)
        write_digests(Path(save_directory), list_files(Path(save_directory)))

    @property
    def towers(self) -> FrozenTowers:
        return FrozenTowers(self.vae, self.text_encoder, self.tokenizer)

    @property
    def side_px(self) -> int:
        """Side of the pictures that the model was trained on."""
        return self.unet.config.sample_size * self.towers.factor

    def resolve(self, task: str, asked: Sampling | None = None) -> Sampling:
        """How a task is sampled: as asked, else as this model remembers; see ``Sampling``.

        Raises:
            UnigsError: steps that no solver can run.
        """
        how = resolve_sampling(task, asked, self.sampling)
        check_steps(self.scheduler, how.solver, how.num_inference_steps)
        return how

    @torch.no_grad()
    def __call__(
        self,
        task: str,
        image: Any = None,
        *,
        mask_image: Any = None,
        labels: Any = None,
        prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
        **options: Any,
    ) -> UniGSOutput | tuple[Any, ...]:
        """Run one task on one picture or many, of any sizes.

        Args:
            task: ``inpainting``, ``synthesis``, ``referring`` or ``entity``.
            image: PIL picture, array [H, W, 3], tensor [3, H, W], a list or a batch of them; all
                tasks but synthesis need it. PIL is turned as its EXIF tag asks, as are mask and
                labels. Floats are 0..1, or -1..1 if any is below 0.
            mask_image: what is brighter than half is to be filled or searched, or what is
                transparent, if PIL holds a picture with a hole; inpainting needs it, referring may
                have it.
            labels: PIL label map or whole numbers [H, W], the entities to draw, each value but 0
                or black one of them; synthesis needs it.
            prompt: bare words, such as ``star``, or a whole prompt of the task (``referring: find
                star.``); one for all pictures, or one each.
            num_images_per_prompt: answers a picture, of as many noises.
            generator: of torch, or a list of one per answer; None: noise by the answer's place, the
                same in every call.
            output_type: ``pil``, ``np`` or ``pt``.
            return_dict: False for a tuple of the output's fields.
            callback_on_step_end: called as ``(pipeline, step, timestep, {"latents": latents})``;
                may return ``{"latents": latents}`` to go on with.
            options: of :class:`unigs.Sampling`: ``num_inference_steps``, ``guidance_scale``,
                ``entity_guidance_scale``, ``ensemble_size``, ``processing_resolution``, ...; what
                is not given is as the model remembers.

        Returns:
            ``UniGSOutput``, in the order of the pictures, at their sizes.

        Raises:
            UnigsError: an unknown task or option, an input that is missing, that the task would
                ignore or that is of a form that is not read, steps that no solver can run.
        """
        if output_type not in OUTPUT_TYPES:
            raise UnigsError(
                f"expected one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}, at output_type"
            )
        wanted = read_options(options)
        if task in RECIPES:
            self.resolve(task, wanted)  # a bad option is told before pictures are read
        asked = gather_asked(
            task, image, mask_image, labels, prompt, num_images_per_prompt, generator
        )
        how = self._size_for(task, wanted, asked)
        by_size: dict[tuple[int, int], list[int]] = {}
        for place, one in enumerate(asked):
            by_size.setdefault(one.size, []).append(place)
        answers: dict[int, tuple[Prediction, int, str]] = {}
        steps = self.resolve(task, how).count_steps(task) * len(by_size)
        with self.progress_bar(total=steps) as bar:
            for places in by_size.values():
                part = [asked[place] for place in places]
                on_step = self._follow(bar, callback_on_step_end)
                made = self.predict(task, **stack_asked(part), sampling=how, on_step=on_step)
                for k, place in enumerate(places):
                    answers[place] = (made, k, asked[place].word)
        self.maybe_free_model_hooks()
        output = collect_output([answers[place] for place in range(len(asked))], output_type)
        return output if return_dict else output.to_tuple()

    def _follow(self, bar: Any, callback: Callable[..., Any] | None) -> OnStep:
        """What is done behind each step: the bar moves, and the user's function is called."""

        def on_step(step: int, timestep: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
            bar.update()
            said = callback(self, step, timestep, {"latents": state}) if callback else None
            return (said or {}).get("latents", state)

        return on_step

    def _size_for(self, task: str, how: Sampling, asked: Sequence[Asked]) -> Sampling:
        """Run at the size that the model learnt, unless it or the user says another."""
        largest = max(min(one.size) for one in asked)
        if largest >= FAR * self.side_px and not self._told_size:
            self._told_size = True
            warnings.warn(
                f"expected pictures of about {self.side_px} px, as this model learnt, got one of "
                f"{largest} px: it is run at another size, and masks are coarse",
                UnigsWarning,
                stacklevel=3,
            )
        if self.resolve(task, how).processing_resolution is None:
            return replace(how, processing_resolution=self.side_px)
        return how

    @torch.no_grad()
    def predict(
        self,
        task: str,
        *,
        image: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        coarse_mask: torch.Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        sampling: Sampling | None = None,
        indices: Sequence[int] | None = None,
        on_step: OnStep | None = None,
    ) -> Prediction:
        """Run one task on a batch of inputs of one size: the path of training and evaluation.

        Args:
            task: ``inpainting``, ``synthesis``, ``referring`` or ``entity``.
            image: uint8 [B, 3, H, W]; needed by all tasks but synthesis.
            labels: int [B, H, W], the entities to synthesise, 0 = nothing; synthesis only.
            coarse_mask: bool [B, 1, H, W], True is to be filled or searched; inpainting needs it,
                referring takes the whole picture without it.
            prompt: one per input, in the words of ``tasks.write_prompt``; entity needs none.
            sampling: what to do in another way than the model remembers.
            indices: of the samples; with the seed they decide the noise; default 0...
            on_step: see :func:`unigs.systems.joint.sampler.sample_streams`.

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
        streams, colormap = self._sample(task, known, how, order, on_step)
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
        device = self._execution_device
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
        self, task: str, known: Known, how: Sampling, indices: Sequence[int], on_step: OnStep | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean streams [B, 8, h, w] of the last noise; the mean colormap uint8 [B, 3, H, W]."""
        towers = self.towers
        conditions = encode_conditions(towers, known)
        passes = plan_passes(task, towers, conditions, how)
        context = conditions.context
        shape = (2 * LATENT_CHANNELS, *context.shape[-2:])
        size = how.count_noises(task)
        colormaps = []
        for noise in draw_ensemble(how.seed or 0, indices, shape, size):
            streams = sample_streams(
                self.unet, self.scheduler, passes, noise.to(context.device), how, on_step
            )
            colormaps.append(towers.decode_latents(streams[:, LATENT_CHANNELS:]).float())
        return streams, torch.stack(colormaps).mean(0).round().to(torch.uint8)
