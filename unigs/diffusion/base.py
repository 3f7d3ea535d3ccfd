"""Where the weights come from: a base folder, a hub id, a single file, or random components.

In: a name. Out: ``Components`` with the UNet as it was stored, the frozen towers and the noise
scheduler. ``make_base`` writes random components of a preset in the true diffusers layout, so that
every loading path runs on small things.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from unigs.diffusion.encoders import FrozenTowers
from unigs.diffusion.tokens import write_clip_tokenizer, write_small_tokenizer
from unigs.records import UnigsError
from unigs.synthetic.scenes import STUFF_IDS, THING_IDS

AUTOENCODER = Path(str(files("unigs") / "assets" / "autoencoder"))
"""The small autoencoder that ships with the package; see its README.md."""

_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "prediction_type": "epsilon",
}
_VAE_TINY = {
    "block_out_channels": (32, 48, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 64,
}
_VAE_SD15 = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}

_UNET_SMALL = {
    "sample_size": 16,
    "in_channels": 9,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "cross_attention_dim": 64,
    "attention_head_dim": 4,
}
_TEXT_SMALL = {  # a bag of words: random layers and places would only blur them
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 0,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {  # 5 M parameters, for trying things at 64 px on a CPU
        "unet": {**_UNET_SMALL, "block_out_channels": (48, 96, 128)},
        "vae": _VAE_TINY,
        "text_encoder": _TEXT_SMALL,
    },
    "small": {  # 8 M parameters, the benchmark's model at 64 px
        "unet": {**_UNET_SMALL, "block_out_channels": (64, 128, 160)},
        "vae": _VAE_TINY,
        "text_encoder": _TEXT_SMALL,
    },
    "sd15": {  # the true shapes of Stable Diffusion 1.5 inpainting
        "unet": {"sample_size": 64, "in_channels": 9, "cross_attention_dim": 768},
        "vae": _VAE_SD15,
        "text_encoder": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
            "projection_dim": 768,
        },
    },
}


@dataclass(slots=True, eq=False)
class Components:
    """What a base gives: the stored UNet, the frozen towers, the scheduler's training config."""

    unet: UNet2DConditionModel
    towers: FrozenTowers
    scheduler: DDPMScheduler


def vae_config(preset: str) -> dict[str, Any]:
    """Arguments of the preset's ``AutoencoderKL``."""
    config = PRESETS[preset]["vae"]
    depth = len(config["block_out_channels"])
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * depth,
        "up_block_types": ("UpDecoderBlock2D",) * depth,
    }
    return {"latent_channels": 4, **blocks, **config}


def write_configs(folder: Path, preset: str, words: Sequence[str] = ()) -> None:
    """Write everything of a base but its weights: configs, tokenizer, scheduler, index."""
    size = _write_tokenizer(folder / "tokenizer", preset, words)
    ids = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    text = CLIPTextConfig(vocab_size=size, **ids, **PRESETS[preset]["text_encoder"])
    text.save_pretrained(folder / "text_encoder")
    with torch.device("meta"):
        UNet2DConditionModel(**PRESETS[preset]["unet"]).save_config(folder / "unet")
        AutoencoderKL(**vae_config(preset)).save_config(folder / "vae")
    DDPMScheduler(**_SCHEDULER).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionInpaintPipeline",
        "_diffusers_version": diffusers.__version__,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def make_base(
    out: str,
    preset: Literal["tiny", "small", "sd15"] = "tiny",
    words: Sequence[str] | None = None,
    autoencoder: str | None = None,
    seed: int = 0,
) -> None:
    """Write a base folder of random weights in the diffusers layout.

    Args:
        out: the folder to write; it must not hold a base yet.
        preset: ``tiny`` or ``small`` (5 and 8 M parameters for 64 px on a CPU, small vocabulary,
            the shipped autoencoder) or ``sd15`` (the shapes and the vocabulary of Stable Diffusion
            1.5 inpainting, 859 M parameters).
        words: category names the small vocabulary should know whole; default: the synthetic
            data's. Other words still work, in more pieces.
        autoencoder: a folder with an ``AutoencoderKL`` to use in place of the preset's own.
        seed: of the random weights.

    Raises:
        UnigsError: ``out`` holds a base already.
    """
    folder = Path(out)
    if (folder / "model_index.json").exists():
        raise UnigsError(f"expected a folder without a base, found model_index.json in {folder}")
    if autoencoder is None and preset != "sd15":
        autoencoder = str(AUTOENCODER)
    torch.manual_seed(seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        base = Path(scratch) / "base"
        write_configs(base, preset, [*THING_IDS, *STUFF_IDS] if words is None else words)
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(base / "unet"))
        unet.save_pretrained(base / "unet")
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(base / "text_encoder"))
        if not text.config.num_hidden_layers:
            nn.init.zeros_(text.get_parameter("embeddings.position_embedding.weight"))
        text.save_pretrained(base / "text_encoder")
        vae = load_vae(autoencoder) if autoencoder else AutoencoderKL(**vae_config(preset))
        vae.save_pretrained(base / "vae")
        shutil.move(base, folder)
    print(f"wrote a random {preset} base to {folder}")


def _write_tokenizer(folder: Path, preset: str, words: Sequence[str]) -> int:
    if preset == "sd15":
        return write_clip_tokenizer(folder)
    prompts = "inpainting synthesis referring panoptic generate find all entities and : , ."
    return write_small_tokenizer(folder, [*prompts.split(), *" ".join(words).lower().split()])


def load_vae(folder: str) -> AutoencoderKL:
    """An ``AutoencoderKL`` folder as stock diffusers saves it; safetensors only."""
    return AutoencoderKL.from_pretrained(folder, use_safetensors=True)


def load_components(base: str, revision: str | None = None) -> Components:
    """Load a base.

    Args:
        base: a local diffusers folder, a single ``.safetensors`` or ``.ckpt`` file in the original
            layout, or a hub id (``stable-diffusion-v1-5/stable-diffusion-inpainting``), which
            downloads unless it is cached. Weights of folders and ids must be safetensors.
        revision: hub revision to pin.

    Raises:
        UnigsError: nothing loadable is there.
    """
    path = Path(base)
    try:
        if path.is_file():
            return _load_single_file(path)
        if path.exists() and not (path / "model_index.json").exists():
            raise UnigsError(
                f"expected a diffusers folder with model_index.json, found none in {path}; "
                "make one with: unigs base --out FOLDER"
            )
        return _load_folder(base, revision)
    except OSError as error:
        raise UnigsError(
            f"expected a diffusers folder, a single file or a reachable hub id, got {base!r}: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _load_folder(base: str, revision: str | None) -> Components:
    where: dict[str, Any] = {"revision": revision}
    safe = {**where, "use_safetensors": True}
    towers = FrozenTowers(
        AutoencoderKL.from_pretrained(base, subfolder="vae", **safe),
        CLIPTextModel.from_pretrained(base, subfolder="text_encoder", **safe),
        CLIPTokenizer.from_pretrained(base, subfolder="tokenizer", **where),
    )
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", **safe)
    scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler", **where)
    return Components(unet, towers, scheduler)


def _load_single_file(path: Path) -> Components:
    """An original Stable Diffusion 1.x checkpoint; its configs are ours, so nothing is fetched."""
    from diffusers import StableDiffusionInpaintPipeline

    with tempfile.TemporaryDirectory() as folder:
        write_configs(Path(folder), "sd15")
        pipe = StableDiffusionInpaintPipeline.from_single_file(
            str(path), config=folder, local_files_only=True, safety_checker=None
        )
    towers = FrozenTowers(pipe.vae, pipe.text_encoder, pipe.tokenizer)
    return Components(pipe.unet, towers, DDPMScheduler.from_config(pipe.scheduler.config))
