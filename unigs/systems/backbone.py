"""The picture's encoder of the siblings: a stock transformers backbone, four levels of features.

In: uint8 pictures. Out: feature maps at strides 4, 8, 16 and 32 of what the backbone sees. Real
ones come by folder or hub id; small ones are random, to be trained from nothing. No layer looks at
other pictures of the batch, nor counts what it saw: a run must resume exactly, on any ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, ResNetBackbone, ResNetConfig

from unigs.systems.pixels import to_signed
from unigs.weights import check_names, in_words

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
        config: of :meth:`describe`; the backbone of ``told.source`` is then built by it, and its
            weights are random until they are loaded.

    Attributes:
        channels: of the four levels.
    """

    def __init__(
        self, told: Backbone, download: bool = True, config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.told, self.enlarge = told, told.enlarge
        self.trained = told.source is not None
        self.backbone = build_backbone(told, download, config)
        self.channels: list[int] = list(self.backbone.channels)

    def train(self, mode: bool = True) -> Encoder:
        """As of every module, but the statistics of a trained backbone stay as they came."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def describe(self) -> dict[str, Any] | None:
        """The config of a trained backbone, as JSON holds it; None of a random one."""
        if not self.trained:
            return None
        config = self.backbone.config.to_diff_dict()
        passing = ("id2label", "label2id", "_name_or_path", "transformers_version")
        return {name: value for name, value in config.items() if name not in passing}

    def forward(self, image: Tensor) -> list[Tensor]:
        """uint8 [B, 3, H, W] -> four float maps [B, C_i, H e / s, W e / s], s = 4, 8, 16, 32."""
        pixels = to_signed(image)
        if self.trained:
            mean, std = (pixels.new_tensor(value)[:, None, None] for value in (MEAN, STD))
            pixels = ((pixels + 1) / 2 - mean) / std
        if self.enlarge > 1:
            pixels = nn.functional.interpolate(pixels, scale_factor=self.enlarge, mode="bilinear")
        return list(self.backbone(pixels).feature_maps)


def build_backbone(
    told: Backbone, download: bool = True, config: Mapping[str, Any] | None = None
) -> Any:
    """The stock module; random weights, or those of a folder or a hub id.

    Raises:
        UnigsError: nothing loadable there.
    """
    if told.source is None:
        width = told.width
        backbone = ResNetBackbone(
            ResNetConfig(
                layer_type="basic",
                depths=[2, 2, 2, 2],
                embedding_size=width,
                hidden_sizes=[width, 2 * width, 4 * width, 6 * width],
                out_features=list(STAGES),
            )
        )
        group_norms(backbone)
        return backbone
    if config is not None:
        with in_words("the config of a transformers backbone", repr(told.source)):
            return AutoBackbone.from_config(AutoConfig.for_model(**config))
    with in_words("a transformers backbone of four stages, in safetensors", repr(told.source)):
        return read_backbone(told.source, download)


def read_backbone(source: str, download: bool) -> Any:
    """A backbone and its weights; a head that was trained with it is left out.

    ``AutoBackbone.from_pretrained`` asks the hub even for a folder, so its class is asked instead.

    Raises:
        UnigsError: weights that leave a part of it random. Norms of the maps that it gives are no
            such part: a classifier has none.
    """
    local = {"local_files_only": not download}
    config = AutoConfig.from_pretrained(source, out_features=list(STAGES), **local)
    with torch.device("meta"):
        kind: Any = type(AutoBackbone.from_config(config))
    backbone, info = kind.from_pretrained(
        source, config=config, use_safetensors=True, output_loading_info=True, **local
    )
    missing = [name for name in info["missing_keys"] if "hidden_states_norms" not in name]
    check_names(missing, (), Path(source))
    return backbone


def group_norms(module: nn.Module) -> None:
    """Put group norms in place of batch norms, which small batches and exact resume rule out."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(gcd(8, child.num_features), child.num_features))
        else:
            group_norms(child)


def resize_features(features: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
    """All levels at one size, bilinear."""
    return [
        torch.nn.functional.interpolate(one, size, mode="bilinear", align_corners=False)
        for one in features
    ]
