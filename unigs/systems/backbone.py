"""The picture's encoder of the siblings: a stock transformers backbone, four levels of features.

In: uint8 pictures. Out: feature maps at strides 4, 8, 16 and 32 of what the backbone sees. Real
ones come by folder or hub id; small ones are random, to be trained from nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, ResNetBackbone, ResNetConfig

from unigs.systems.pixels import to_signed
from unigs.weights import in_words

STAGES = ("stage1", "stage2", "stage3", "stage4")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, by which trained backbones expect pixels of 0..1."""


@dataclass(frozen=True)  # no slots: the command line reads its fields
class Backbone:
    """Which encoder looks at the picture.

    Args:
        source: folder or hub id of a transformers backbone with four stages (ResNet, Swin, ...),
            safetensors; None: a ResNet-18 of random weights.
        width: channels of that ResNet's first stage; the next have 2, 4 and 6 times as many.
        enlarge: pictures are enlarged by this first: the first stage sees a quarter of them.
    """

    source: str | None = None
    width: int = 32
    enlarge: int = 1


class Encoder(nn.Module):
    """A backbone with its pixels' scale.

    Args:
        told: which.
        download: whether the hub may be asked for ``told.source``.
        config: of a stored backbone, which is built by it with random weights; its ``source`` and
            ``width`` then say nothing.

    Attributes:
        channels: of the four levels.
    """

    def __init__(
        self, told: Backbone, download: bool = True, config: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.enlarge = told.enlarge
        self.trained = told.source is not None
        self.backbone = rebuild_backbone(config) if config else build_backbone(told, download)
        self.channels: list[int] = list(self.backbone.channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        """uint8 [B, 3, H, W] -> four float maps [B, C_i, H e / s, W e / s], s = 4, 8, 16, 32."""
        pixels = to_signed(image)
        if self.trained:
            mean, std = (pixels.new_tensor(value)[:, None, None] for value in (MEAN, STD))
            pixels = ((pixels + 1) / 2 - mean) / std
        if self.enlarge > 1:
            pixels = nn.functional.interpolate(pixels, scale_factor=self.enlarge, mode="bilinear")
        return list(self.backbone(pixels).feature_maps)


def build_backbone(told: Backbone, download: bool = True) -> Any:
    """The stock module; random weights, or those of a folder or a hub id.

    Raises:
        UnigsError: nothing loadable there.
    """
    if told.source is None:
        width = told.width
        return ResNetBackbone(
            ResNetConfig(
                layer_type="basic",
                depths=[2, 2, 2, 2],
                embedding_size=width,
                hidden_sizes=[width, 2 * width, 4 * width, 6 * width],
                out_features=list(STAGES),
            )
        )
    with in_words("a transformers backbone of four stages, in safetensors", repr(told.source)):
        return AutoBackbone.from_pretrained(
            told.source,
            out_features=list(STAGES),
            use_safetensors=True,
            local_files_only=not download,
        )


def rebuild_backbone(config: dict[str, Any]) -> Any:
    """The stock module of a stored config, random weights; nothing is fetched.

    Raises:
        UnigsError: no config of a backbone.
    """
    with in_words("the config of a transformers backbone", repr(config.get("model_type"))):
        return AutoBackbone.from_config(AutoConfig.for_model(**config))


def resize_features(features: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
    """All levels at one size, bilinear."""
    return [
        torch.nn.functional.interpolate(one, size, mode="bilinear", align_corners=False)
        for one in features
    ]
