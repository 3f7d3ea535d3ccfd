"""Networks of three sizes, and everything of a base folder but its weights.

In: a preset's name. Out: configs of stock classes in the true diffusers layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig

from unigs.files import write_json
from unigs.systems.joint.tokens import write_clip_tokenizer, write_small_tokenizer

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
_WORDS_IN_TIME = {"addition_embed_type": "text", "addition_embed_type_num_heads": 4}
"""The words pooled and added to the time embedding, too: every block hears them."""
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
        "unet": {**_UNET_SMALL, **_WORDS_IN_TIME, "block_out_channels": (64, 128, 160)},
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


def vae_config(preset: str) -> dict[str, Any]:
    """Arguments of the preset's ``AutoencoderKL``."""
    config = PRESETS[preset]["vae"]
    depth = len(config["block_out_channels"])
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * depth,
        "up_block_types": ("UpDecoderBlock2D",) * depth,
    }
    return {"latent_channels": 4, **blocks, **config}


def write_configs(
    folder: Path, preset: str, words: Sequence[str] = (), in_channels: int | None = None
) -> None:
    """Write everything of a base but its weights: configs, tokenizer, scheduler, index.

    Args:
        folder: where they go.
        preset: one of ``PRESETS``.
        words: that a small vocabulary should know whole.
        in_channels: of the UNet, where it has others than the preset.
    """
    size = _write_tokenizer(folder / "tokenizer", preset, words)
    ids = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    text = CLIPTextConfig(vocab_size=size, **ids, **PRESETS[preset]["text_encoder"])
    text.save_pretrained(folder / "text_encoder")
    with torch.device("meta"):
        unet = {**PRESETS[preset]["unet"], **({"in_channels": in_channels} if in_channels else {})}
        UNet2DConditionModel(**unet).save_config(folder / "unet")
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
    write_json(folder / "model_index.json", index)


def _write_tokenizer(folder: Path, preset: str, words: Sequence[str]) -> int:
    if preset == "sd15":
        return write_clip_tokenizer(folder)
    prompts = "inpainting synthesis referring panoptic generate find all entities and : , ."
    return write_small_tokenizer(folder, [*prompts.split(), *" ".join(words).lower().split()])
