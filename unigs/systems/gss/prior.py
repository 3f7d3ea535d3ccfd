"""The trained part of GSS: picture -> logits of the maskige's codes.

In: uint8 pictures. Out: float [B, codes, h, w] over the frozen posterior's codebook, one cell per
``stride`` pixels of the picture. Multi-level features and window attention (Section 3, "Model
architecture"), with a light head beside them that guesses classes where no truth is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unigs.records import UnigsError
from unigs.systems.backbone import Encoder, resize_features
from unigs.systems.gss.windows import Windows


@dataclass(frozen=True)  # no slots: the command line reads its fields
class Prior:
    """The network that predicts codes.

    Args:
        dim: channels of joined features.
        blocks: Swin layers (paper: 2 with Swin-L, 6 with ResNet-101 and HRNet).
        heads: of their attention.
        window: cells along a side of a window.
        multi_level: use all four levels of the backbone; False: the last alone.
        stride: pixels of the picture per code (paper: 4).
        auxiliary: a light head guesses the classes of unknown pixels; False: they are painted as
            background.
    """

    dim: int = 512
    blocks: int = 2
    heads: int = 16
    window: int = 7
    multi_level: bool = True
    stride: int = 4
    auxiliary: bool = True


class MaskigePrior(nn.Module):
    """Backbone, joined levels, Swin layers, logits.

    Args:
        told: sizes.
        encoder: the backbone.
        codes: of the posterior's codebook.
        classes: of the auxiliary head; None: without it, as at test time.
    """

    def __init__(self, told: Prior, encoder: Encoder, codes: int, classes: int | None) -> None:
        super().__init__()
        dim = told.dim
        self.told, self.encoder = told, encoder
        channels = encoder.channels if told.multi_level else encoder.channels[-1:]
        self.levels = nn.ModuleList(nn.Conv2d(count, dim, 1) for count in channels)
        self.join = nn.Conv2d(len(channels) * dim, dim, 1)
        self.windows = Windows(dim, told.blocks, told.heads, told.window)
        self.head = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, codes))
        self.auxiliary = None if classes is None else nn.Conv2d(dim, classes, 1)

    def look(self, image: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> joined features, float [B, D, H / stride, W / stride].

        Raises:
            UnigsError: sides that are not multiples of ``stride``.
        """
        stride, sides = self.told.stride, image.shape[-2:]
        if sides[0] % stride or sides[1] % stride:
            raise UnigsError(
                f"expected sides that are multiples of {stride}, got {sides[0]} x {sides[1]}, "
                "at pictures of GSS"
            )
        features = self.encoder(image)[-len(self.levels) :]
        narrow = [level(one) for level, one in zip(self.levels, features, strict=True)]
        size = (sides[0] // stride, sides[1] // stride)
        return self.join(torch.cat(resize_features(narrow, size), 1))

    def predict(self, features: Tensor) -> Tensor:
        """Joined features -> logits of the codes, float [B, codes, h, w]."""
        return self.head(self.windows(features)).permute(0, 3, 1, 2)

    def guess(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Joined features -> the auxiliary head's logits of classes, float [B, K, H, W]."""
        assert self.auxiliary is not None
        return resize_features([self.auxiliary(features)], (size[0], size[1]))[0]
