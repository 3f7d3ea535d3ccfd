"""``unigs base``: random components of a preset in the true diffusers layout.

So that every loading path runs on small things, and a model can be trained from nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from unigs.files import new_folder
from unigs.records import UnigsError
from unigs.weights import INDEX, in_words


def make_base(
    out: str,
    preset: Literal["tiny", "small", "sd15"] = "tiny",
    words: Sequence[str] | None = None,
    autoencoder: str | None = None,
    seed: int = 0,
) -> None:
    """Write a base folder of random weights in the diffusers layout.

    Args:
        out: the folder to write; it must be new or empty.
        preset: ``tiny`` or ``small`` (5 and 8 M parameters for 64 px on a CPU, small vocabulary,
            the shipped autoencoder) or ``sd15`` (the shapes and the vocabulary of Stable Diffusion
            1.5 inpainting, 859 M parameters).
        words: category names the small vocabulary should know whole; default: the synthetic
            data's. Other words still work, in more pieces.
        autoencoder: a folder with an ``AutoencoderKL`` to use in place of the preset's own.
        seed: of the random weights.

    Raises:
        UnigsError: ``out`` holds a base or other files already.
    """
    folder = Path(out)
    if folder.exists():
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ["a file"]
        if found:
            shown = INDEX if INDEX in found else found[0]
            raise UnigsError(
                f"expected a new or empty folder for a base, found {shown} in {folder}"
            )
    import torch  # late: help and errors start no torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch import nn
    from transformers import CLIPTextConfig, CLIPTextModel

    from unigs.synthetic.scenes import STUFF_IDS, THING_IDS
    from unigs.systems.joint.base import load_vae
    from unigs.systems.joint.presets import AUTOENCODER, vae_config, write_configs

    if autoencoder is None and preset != "sd15":
        autoencoder = str(AUTOENCODER)
    torch.manual_seed(seed)
    with new_folder(folder) as base:
        write_configs(base, preset, [*THING_IDS, *STUFF_IDS] if words is None else words)
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(base / "unet"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(base / "text_encoder"))
        if not text.config.num_hidden_layers:
            nn.init.zeros_(text.get_parameter("embeddings.position_embedding.weight"))
        vae = load_vae(autoencoder) if autoencoder else AutoencoderKL(**vae_config(preset))
        with in_words("room for the weights", folder):
            unet.save_pretrained(base / "unet")
            text.save_pretrained(base / "text_encoder")
            vae.save_pretrained(base / "vae")
    print(f"wrote a random {preset} base to {folder}")
