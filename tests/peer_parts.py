"""Random peers, tiny, in the layouts in which the hub holds the true ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch


def save_tiny_sd(base, folder):
    """Stable Diffusion that draws from words, over the base's towers."""
    from diffusers import StableDiffusionPipeline

    blocks = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")  # as SD's own
    layout = {"down_block_types": blocks, "up_block_types": [_turn(b) for b in reversed(blocks)]}
    pipeline = make_tiny_pipeline(StableDiffusionPipeline, base, in_channels=4, **layout)
    torch.nn.init.normal_(pipeline.unet.conv_out.weight, std=0.1)
    pipeline.save_pretrained(folder)
    return folder


def save_tiny_inpainting(base, folder):
    """Stable Diffusion inpainting over the base's towers."""
    from diffusers import StableDiffusionInpaintPipeline

    make_tiny_pipeline(StableDiffusionInpaintPipeline, base, in_channels=9).save_pretrained(folder)
    return folder


def make_tiny_pipeline(kind, base, **layout):
    """A pipeline of Stable Diffusion over the base's towers, its UNet random and laid out anew."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    from unigs.systems.joint.base import load_components

    parts = load_components(base)
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config({**parts.unet.config, **layout})
    return kind(
        vae=parts.towers.vae,
        text_encoder=parts.towers.text_encoder,
        tokenizer=parts.towers.tokenizer,
        unet=unet,
        scheduler=DDIMScheduler.from_config(parts.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_tiny_controlnet(sd, folder):
    """A ControlNet of Stable Diffusion's UNet whose answers are not zero, as a new one's are."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(Path(sd) / "unet")
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8))
    zeros = [*network.controlnet_down_blocks, network.controlnet_cond_embedding.conv_out]
    for layer in zeros:
        torch.nn.init.normal_(layer.weight)
    network.save_pretrained(folder)
    return folder


def save_tiny_adapter(sd, folder, in_channels=3):
    """A T2I-Adapter of Stable Diffusion's UNet."""
    from diffusers import T2IAdapter, UNet2DConditionModel

    torch.manual_seed(0)
    channels = list(UNet2DConditionModel.load_config(Path(sd) / "unet")["block_out_channels"])
    T2IAdapter(in_channels, channels, 1, 4, "full_adapter").save_pretrained(folder)
    return folder


def tiny_segmenter(classes):
    """What the configs of Mask2Former and OneFormer share: sizes, and a Swin that sees 64 px."""
    from transformers import SwinConfig

    backbone = SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return {
        "backbone_config": backbone,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 16,
        "dim_feedforward": 16,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_attention_heads": 2,
        "num_queries": 6,
        "num_labels": classes,
    }


def save_tiny_oneformer(base, folder, classes=3):
    """A OneFormer with the files of the hub's, the class file that it names aside."""
    from transformers import (
        OneFormerConfig,
        OneFormerForUniversalSegmentation,
        OneFormerImageProcessorPil,
    )

    torch.manual_seed(0)
    config = OneFormerConfig(
        **tiny_segmenter(classes),
        conv_dim=32,
        mask_dim=32,
        query_dec_layers=1,
    )
    config.id2label = {number: f"class {number}" for number in range(classes)}
    model = OneFormerForUniversalSegmentation(config)
    with torch.no_grad():  # so that the queries, and not "no object", win
        for name, weight in model.named_parameters():
            if "class_embed" in name:
                weight *= 100
                if name.endswith("bias"):
                    weight[-1] = -20.0
            elif "mask_embed" in name:
                weight *= 5
    model.save_pretrained(folder)
    processor = OneFormerImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 128}, num_labels=classes
    )
    processor.class_info_file = "coco_panoptic.json"  # of a data set of the hub
    processor.metadata = {"thing_ids": [0], "class_names": list(config.id2label.values())}
    processor.save_pretrained(folder)
    for path in (Path(base) / "tokenizer").iterdir():
        shutil.copy(path, folder)
    return folder


def save_tiny_sam(folder):
    """A Segment Anything for pictures of 64 px."""
    from transformers import SamConfig, SamImageProcessorPil, SamModel

    torch.manual_seed(0)
    vision = {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "mlp_dim": 16,
        "window_size": 4,
        "global_attn_indexes": [0],
        "num_pos_feats": 8,
    }
    prompts = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 16,
        "mlp_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
        "attention_downsample_rate": 2,
    }
    config = SamConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )
    model = SamModel(config)
    model.save_pretrained(folder)
    SamImageProcessorPil(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    ).save_pretrained(folder)
    return folder


def _turn(block):
    """The name of a UNet's way up for one of its way down."""
    return block.replace("Down", "Up")
