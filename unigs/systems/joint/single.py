"""One file in the original Stable Diffusion layout -> the parts of a base.

In: safetensors or a ``.ckpt``, told apart by content and not by name. Out: stock modules with every
weight from the file. A look at the names of the tensors says what a file of another kind is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from unigs.records import UnigsError
from unigs.systems.joint.presets import write_configs
from unigs.systems.joint.tokens import load_tokenizer
from unigs.weights import (
    check_file,
    check_finite,
    check_names,
    in_words,
    read_tensors,
)

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
CHANNELS = (4, 9)
"""Input channels of the UNets that ``denoiser.widen_unet`` takes."""

_OTHER_CHANNELS = {5: "depth-to-image", 7: "an upscaler", 8: "InstructPix2Pix"}
_LORA = "a LoRA: only changes to another file's weights"
_FOREIGN = (  # what a file is if a tensor's name begins so
    ("conditioner.", "Stable Diffusion XL"),
    ("cond_stage_model.model.", "Stable Diffusion 2 (its text encoder is OpenCLIP's)"),
    ("lora_", _LORA),
    ("model.diffusion_model.double_blocks.", "Flux"),
    ("double_blocks.", "Flux"),
    ("model.diffusion_model.joint_blocks.", "Stable Diffusion 3"),
    ("joint_blocks.", "Stable Diffusion 3"),
    ("control_model.", "a ControlNet"),
    ("controlnet_", "a ControlNet"),
    ("emb_params", "a textual inversion"),
    ("string_to_param", "a textual inversion"),
    ("down_blocks.", "a UNet of diffusers alone: give its whole folder"),
    ("unet.", "a training checkpoint: turn it into a folder with unigs export"),
    ("encoder.", "an autoencoder alone"),
    ("decoder.", "an autoencoder alone"),
    ("text_model.", "a text encoder alone"),
    ("transformer.", "a text encoder alone"),
)


def read_single_file(path: Path) -> tuple[Any, Any, Any, Any, DDPMScheduler]:
    """UNet, VAE, text encoder, tokenizer and scheduler of a Stable Diffusion 1.x checkpoint.

    Raises:
        UnigsError: a file that is damaged, not finite, or of another kind, which is named.
    """
    weights = read_weights(path)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    channels = check_kind(shapes, path)
    check_finite(weights.items(), path)
    with tempfile.TemporaryDirectory() as scratch, in_words("Stable Diffusion 1.x", path):
        folder = Path(scratch)
        write_configs(folder, "sd15", in_channels=channels)
        unet = _load_part(UNet2DConditionModel, "unet", weights, folder, path)
        vae = _load_part(AutoencoderKL, "vae", weights, folder, path)
        text = _load_text(weights, folder / "text_encoder", path)
        tokenizer = load_tokenizer(folder / "tokenizer")
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    if "v_pred" in weights:  # an empty tensor, by convention
        scheduler.register_to_config(prediction_type="v_prediction")
    if "ztsnr" in weights:
        config = {**scheduler.config, "rescale_betas_zero_snr": True}
        scheduler = DDPMScheduler.from_config(config)
    return unet, vae, text, tokenizer, scheduler


def check_kind(shapes: Mapping[str, tuple[int, ...]], path: Path) -> int:
    """Say what a file is, by its tensors' names; the UNet's input channels if it is a base.

    Args:
        shapes: of the tensors, by name.
        path: for the message.

    Raises:
        UnigsError: it is something else, or lacks a part.
    """
    wanted = "expected a whole Stable Diffusion 1.x checkpoint"
    for name in sorted(shapes):
        if ".lora_" in name or ".lora." in name or "_lora." in name:
            raise UnigsError(f"{wanted}, got {_LORA} ({name}), at {path}")
        for prefix, kind in _FOREIGN:
            if name.startswith(prefix):
                raise UnigsError(f"{wanted}, got {kind} ({name}), at {path}")
    first = shapes.get(f"{UNET}input_blocks.0.0.weight")
    parts = {
        "UNet": first is not None,
        "autoencoder": any(name.startswith(VAE) for name in shapes),
        "text encoder": any(name.startswith(TEXT) for name in shapes),
    }
    if first is None and any(name.startswith("model_ema.") for name in shapes):
        raise UnigsError(f"{wanted}, got averaged (EMA) weights alone, at {path}")
    if not all(parts.values()):
        lacks = " and ".join(f"no {part}" for part, there in parts.items() if not there)
        some = ", ".join(sorted(shapes)[:3]) or "nothing"
        raise UnigsError(f"{wanted}, got one with {lacks} (it holds {some}, ...), at {path}")
    channels = first[1] if first is not None and len(first) == 4 else 0
    if channels not in CHANNELS:
        kind = _OTHER_CHANNELS.get(channels, "of an unknown kind")
        raise UnigsError(
            f"expected a UNet of 4 (text-to-image) or 9 (inpainting) input channels, got "
            f"{channels}: {kind}, at {path}"
        )
    return channels


# --- bytes to tensors ----------------------------------------------------------------------------


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name; of a ``.ckpt`` those under ``state_dict``.

    Raises:
        UnigsError: damaged, or of another format.
    """
    check_file(path)
    with open(path, "rb") as file:
        head = file.read(9)
    if head.startswith(b"PK"):
        content = read_pickle(path)
        weights = content.get("state_dict", content) if isinstance(content, dict) else None
        if not isinstance(weights, dict):
            raise UnigsError(f"expected weights by name, got {type(content).__name__}, at {path}")
        return {k: v for k, v in weights.items() if isinstance(v, torch.Tensor)}
    if head[8:9] != b"{" and not path.name.lower().endswith(".safetensors"):
        raise UnigsError(
            f"expected safetensors or a .ckpt of torch 1.6 or newer, got bytes of another format "
            f"({head!r}), at {path}; convert it to safetensors"
        )
    read_tensors(path)
    with in_words("whole safetensors weights", path):
        return load_file(path)


def read_pickle(path: Path) -> Any:
    """What ``torch.save`` wrote, with nothing in it run.

    The classes of Lightning's callbacks, by which released checkpoints key their state, are read as
    an inert stand-in, whether Lightning is installed or not.

    Raises:
        UnigsError: cut, no such file, or one that names code of others.
    """
    with in_words("a whole checkpoint of torch.save (cut or damaged?)", path):
        named = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        harmless = ("pytorch_lightning.", "lightning.pytorch.")
        others = sorted(name for name in named if not name.startswith(harmless))
        if others:
            raise UnigsError(
                f"expected tensors and plain values, got a pickle that would run {others[0]}, at "
                f"{path}; convert it to safetensors where you trust it"
            )
        stand_ins: list[Any] = [(_StandIn, name) for name in named]
        allowed = torch.serialization.safe_globals(stand_ins) if named else nullcontext()
        options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
        with allowed, open(path, "rb") as file:
            if path.name.lower().endswith(".safetensors"):  # torch would go by the name
                return torch.load(file, **options)
            return torch.load(str(path), mmap=True, **options)


class _StandIn:
    """In place of a class that a checkpoint names and nobody needs."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# --- tensors to networks -------------------------------------------------------------------------


def _load_part(kind: Any, name: str, weights, folder: Path, path: Path) -> Any:
    """By diffusers' own table of names; then every weight of the network must have come."""
    prefix = UNET if name == "unet" else VAE
    mine = {key: value for key, value in weights.items() if key.startswith(prefix)}
    with in_words(f"the weights of Stable Diffusion 1.x's {name}", path):
        module = kind.from_single_file(
            mine,
            config=str(folder),
            subfolder=name,
            local_files_only=True,
            torch_dtype=torch.float32,
        )
    check_names([key for key, value in module.state_dict().items() if value.is_meta], (), path)
    return module


def _load_text(weights, folder: Path, path: Path) -> Any:
    """CLIP's text encoder, whose original names are those of transformers, under a prefix."""
    text = CLIPTextModel(CLIPTextConfig.from_pretrained(folder))
    mine = {
        key.removeprefix(TEXT).removeprefix("text_model."): value
        for key, value in weights.items()
        if key.startswith(TEXT) and not key.endswith("position_ids")
    }
    flat = {key.removeprefix("text_model."): value for key, value in text.state_dict().items()}
    check_names(flat.keys() - mine.keys(), (), path)
    with in_words("the weights of CLIP ViT-L's text encoder", path), torch.no_grad():
        for key, value in flat.items():
            if value.shape != mine[key].shape:
                raise UnigsError(
                    f"expected {key} of {list(value.shape)}, got {list(mine[key].shape)}, at {path}"
                )
            value.copy_(mine[key])
    return text.eval()
