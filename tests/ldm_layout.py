"""Writes diffusers components as one checkpoint in the original Stable Diffusion 1.x layout.

Only for tests of the single-file loader: the inverse of what diffusers does when it reads one.
"""

from __future__ import annotations

import re

import torch

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}


def name_unet_weight(name: str) -> str:
    """diffusers' UNet name -> the original's, for four levels of two layers."""
    for new, old in _TOP.items():
        if name.startswith(new):
            name = old + name[len(new) :]
    if match := re.match(r"down_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name):
        level, kind, layer, rest = match.groups()
        name = f"input_blocks.{3 * int(level) + int(layer) + 1}.{int(kind == 'attentions')}.{rest}"
    elif match := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.*)", name):
        name = f"input_blocks.{3 * (int(match[1]) + 1)}.0.op.{match[2]}"
    elif match := re.match(r"up_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name):
        level, kind, layer, rest = match.groups()
        name = f"output_blocks.{3 * int(level) + int(layer)}.{int(kind == 'attentions')}.{rest}"
    elif match := re.match(r"up_blocks\.(\d)\.upsamplers\.0\.(.*)", name):
        name = f"output_blocks.{3 * int(match[1]) + 2}.{1 if match[1] == '0' else 2}.{match[2]}"
    if "transformer_blocks" not in name:
        for new, old in _RESNET.items():
            name = re.sub(rf"(_blocks?\.[\d.]+\.){new}\.", rf"\1{old}.", name)
    return "model.diffusion_model." + name


def name_vae_weight(name: str) -> str:
    """diffusers' ``AutoencoderKL`` name -> the original's, for four levels."""
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
    for new, old in (
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
        ("group_norm", "norm"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        ("to_out.0", "proj_out"),
    ):
        name = name.replace(new, old)
    return "first_stage_model." + name


def write_original(unet, vae, text_encoder) -> dict[str, torch.Tensor]:
    """The state dict of an original checkpoint with these components' weights."""
    out = {name_unet_weight(name): weight for name, weight in unet.state_dict().items()}
    for name, weight in vae.state_dict().items():
        old = name_vae_weight(name)
        if ".attn_1." in old and weight.dim() == 2:
            weight = weight[:, :, None, None]  # 1x1 convolutions there
        out[old] = weight
    for name, weight in text_encoder.state_dict().items():
        stem = name if name.startswith("text_model.") else f"text_model.{name}"
        out[f"cond_stage_model.transformer.{stem}"] = weight
    return {name: weight.contiguous() for name, weight in out.items()}
