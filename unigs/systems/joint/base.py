"""Where the weights come from: a base folder, a hub id, or a single file.

In: a name. Out: ``Components`` with the UNet as it was stored, the frozen towers and the noise
scheduler, each checked.

The network is asked only for what a user typed as a hub id; see :func:`locate_base`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from unigs.records import UnigsError, UnigsWarning
from unigs.systems.joint.objective import PREDICTION_TYPES
from unigs.systems.joint.single import read_single_file
from unigs.systems.joint.tokens import check_tokenizer, check_vocabulary, load_tokenizer
from unigs.systems.joint.towers import LATENT_CHANNELS, FrozenTowers
from unigs.weights import (
    HUB_ID,
    INDEX,
    check_numbers,
    find_weights,
    in_words,
    load_module,
    locate_shipped,
    read_config,
    read_hub_id,
    read_tensors,
)

_STEM = "diffusion_pytorch_model"
_HUB_FILES = (
    INDEX, "digests.json", "*/config.json", "scheduler/scheduler_config.json", "tokenizer/*.json",
    "tokenizer/*.txt", f"*/{_STEM}.safetensors", f"*/{_STEM}-*-of-*.safetensors",
    f"*/{_STEM}.safetensors.index.json", "text_encoder/model.safetensors",
)  # fmt: skip
_NOISES = (
    "DDPM", "DDIM", "PNDM", "LMS", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete",
    "KDPM2", "DPMSolver", "UniPC", "DEIS", "LCM", "TCD",
)  # fmt: skip


@dataclass(slots=True, eq=False)
class Components:
    """What a base gives: the stored UNet, the frozen towers, the scheduler's training config."""

    unet: UNet2DConditionModel
    towers: FrozenTowers
    scheduler: DDPMScheduler


# --- names ---------------------------------------------------------------------------------------


def locate_base(base: str, revision: str | None = None, download: bool = True) -> Path:
    """The local folder or file that a name stands for.

    Args:
        base: a path, the name of a model that ships, or a hub id; see :func:`read_hub_id`. A path
            that exists always wins.
        revision: of a hub id.
        download: whether the hub may be asked; False looks at its local cache alone.

    Raises:
        UnigsError: nothing there.
    """
    base = str(locate_shipped(base))
    with in_words("the name of a base", repr(base)):
        found = Path(base).exists()
        name = None if found else read_hub_id(base)
    if found:
        return Path(base)
    if name is None:
        raise UnigsError(
            f"expected a base: a diffusers folder, a single file, or a hub id org/name, got none "
            f"at {base!r}; if it is a hub id, write hub:{base}"
        )
    if not HUB_ID.fullmatch(name):
        raise UnigsError(f"expected a hub id org/name, got {name!r}, at {base!r}")
    where = "on the hub" if download else "in the hub's local cache (nothing is downloaded here)"
    from huggingface_hub import snapshot_download

    with in_words(f"a base {name} {where}", repr(base)):
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(_HUB_FILES),
                local_files_only=not download,
            )
        )


# --- loading -------------------------------------------------------------------------------------


def load_components(base: str, revision: str | None = None) -> Components:
    """Load a base.

    Args:
        base: a local diffusers folder, the name of a model that ships, a single file in the
            original layout (safetensors or ``.ckpt``), or a hub id
            (``stable-diffusion-v1-5/stable-diffusion-inpainting``), which downloads unless it is
            cached. Weights of folders and ids must be safetensors.
        revision: hub revision to pin.

    Raises:
        UnigsError: nothing loadable is there, or parts that are damaged or do not fit each other.
    """
    path = locate_base(base, revision)
    return load_folder(path) if path.is_dir() else load_single_file(path)


def load_folder(folder: Path) -> Components:
    """Every part of a diffusers folder, whole, finite, and fitting the others.

    Raises:
        UnigsError: names the file.
    """
    if not (folder / INDEX).exists():
        raise UnigsError(
            f"expected a diffusers folder with {INDEX}, found none in {folder}; "
            "make one with: unigs base --out FOLDER"
        )
    kind = read_config(folder / INDEX).get("_class_name", "")
    if "XL" in str(kind) or "StableDiffusion3" in str(kind):
        raise UnigsError(f"expected Stable Diffusion 1.x, got {kind}, at {folder / INDEX}")
    text = load_module(CLIPTextModel, folder / "text_encoder", "model", may_leave=True)
    tokenizer = load_tokenizer(folder / "tokenizer")
    check_tokenizer(tokenizer, text.config, folder / "tokenizer")
    scheduler = load_scheduler(folder / "scheduler")
    vae = load_vae(str(folder / "vae"))
    unet = load_module(UNet2DConditionModel, folder / "unet", _STEM)
    check_parts(unet, text, folder)
    return Components(unet, FrozenTowers(vae, text, tokenizer), scheduler)


def check_files(folder: Path) -> None:
    """Look at the files of a stock pipeline before its own loader does; headers alone are read.

    Raises:
        UnigsError: weights that are missing, cut or pointers, or no vocabulary; names the file.
    """
    for part in ("unet", "vae", "text_encoder"):
        read_config(folder / part / "config.json")
        for file in find_weights(folder / part, "model" if part == "text_encoder" else _STEM):
            read_tensors(file)
    check_vocabulary(folder / "tokenizer")


def load_vae(folder: str) -> AutoencoderKL:
    """An ``AutoencoderKL`` of a local folder as stock diffusers saves it; safetensors only.

    Raises:
        UnigsError: none there, or one that is damaged or of another number of latent channels.
    """
    vae = load_module(AutoencoderKL, Path(folder), _STEM)
    channels, scale = vae.config.latent_channels, vae.config.scaling_factor
    if channels != LATENT_CHANNELS or not isinstance(scale, int | float) or scale <= 0:
        raise UnigsError(
            f"expected an autoencoder of {LATENT_CHANNELS} latent channels and a scaling_factor "
            f"above 0, got {channels} and {scale!r}, at {Path(folder) / 'config.json'}"
        )
    return vae


def check_parts(unet, text, folder: Path) -> None:
    """Refuse a UNet and a text encoder of different widths.

    Raises:
        UnigsError: names both.
    """
    wide = unet.config.cross_attention_dim
    if set(wide if isinstance(wide, list | tuple) else [wide]) != {text.config.hidden_size}:
        raise UnigsError(
            f"expected a UNet that listens to {text.config.hidden_size} numbers a token, as the "
            f"text encoder gives, got {wide}, at {folder / 'unet' / 'config.json'}"
        )


def load_single_file(path: Path) -> Components:
    """An original Stable Diffusion 1.x checkpoint; its configs are ours, so nothing is fetched.

    Raises:
        UnigsError: a file of another kind, named.
    """
    unet, vae, text, tokenizer, scheduler = read_single_file(path)
    check_scheduler(scheduler, path)
    return Components(unet, FrozenTowers(vae, text, tokenizer), scheduler)


# --- the noise -----------------------------------------------------------------------------------


def load_scheduler(folder: Path) -> DDPMScheduler:
    """The noise schedule of a folder, whichever sampler it was stored with.

    Raises:
        UnigsError: none, or of another kind of process (flow matching, EDM).
    """
    path = folder / "scheduler_config.json"
    config = read_config(path)
    check_numbers(config, path)
    kind = str(config.get("_class_name", ""))
    if not kind.startswith(_NOISES) or config.get("use_flow_sigmas"):
        raise UnigsError(
            "expected the scheduler of a diffusion with betas, as DDPM, DDIM or PNDM, got "
            f"{kind or 'none'}{' with use_flow_sigmas' * bool(config.get('use_flow_sigmas'))}, "
            f"at {path}"
        )
    with in_words("a noise schedule", path):
        scheduler = DDPMScheduler.from_pretrained(str(folder), local_files_only=True)
    check_scheduler(scheduler, path)
    if not kind.startswith("DDPM"):
        warnings.warn(
            f"{folder}: of its {kind} the betas and the prediction type are taken; sampling "
            "has its own options",
            UnigsWarning,
            stacklevel=2,
        )
    return scheduler


def check_scheduler(scheduler, where: Path) -> None:
    """Refuse a schedule that is no schedule.

    Raises:
        UnigsError: an unknown prediction type; noise that does not grow from little to much; the
            noise asked for where nothing of the picture is left.
    """
    config, left = scheduler.config, scheduler.alphas_cumprod
    if config.prediction_type not in PREDICTION_TYPES:
        raise UnigsError(
            f"expected a prediction_type of {', '.join(PREDICTION_TYPES)}, got "
            f"{config.prediction_type!r}, at {where}"
        )
    sized = left.dim() == 1 and 1 < len(left) == config.num_train_timesteps
    if not sized or not left.isfinite().all() or not _falls(left):
        raise UnigsError(f"expected betas that add noise at every step, got others, at {where}")
    if config.rescale_betas_zero_snr and config.prediction_type == "epsilon":
        raise UnigsError(
            "expected v_prediction or sample with rescale_betas_zero_snr (the last step is pure "
            f"noise), got epsilon, at {where}"
        )


def _falls(left: torch.Tensor) -> bool:
    """Whether the share of the picture [T] falls from below 1 to 0 or more."""
    return bool((left.diff() <= 0).all() and left[0] < 1 and left[-1] >= 0)


def resolve_prediction_type(asked: str | None, scheduler: Any, base: str = "") -> str:
    """What the network is to be asked for: the base's own unless something else is given.

    Args:
        asked: ``epsilon``, ``v_prediction``, ``sample``, or None for the base's own.
        scheduler: the base's.
        base: its name, for the message.

    Raises:
        UnigsError: no such type, or noise asked of a base whose last step is pure noise.
    """
    own = scheduler.config.prediction_type
    kind = own if asked is None else asked
    if kind not in PREDICTION_TYPES:
        raise UnigsError(f"expected one of {', '.join(PREDICTION_TYPES)}, got {kind!r}, at {base}")
    if kind == "epsilon" and scheduler.config.rescale_betas_zero_snr:
        raise UnigsError(
            f"expected v_prediction or sample for {base!r}, whose last step is pure noise "
            "(rescale_betas_zero_snr), got epsilon, at prediction_type"
        )
    if kind != own:
        warnings.warn(
            f"base {base!r} was trained to predict {own}, this model asks it for {kind}: fine for "
            "random weights, a long way for trained ones; leave prediction_type out to keep it",
            UnigsWarning,
            stacklevel=2,
        )
    return kind
