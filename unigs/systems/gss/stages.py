"""All stages of GSS together: picture -> codes -> maskige -> classes.

In: uint8 pictures. Out: the decoded maskige at their size, and each pixel's class and how sure it
is. What trains and what predicts hold the same ``Stages``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unigs.codec.maskige import read_maskige
from unigs.systems.gss.painting import Painting
from unigs.systems.gss.posterior import Posterior
from unigs.systems.gss.prior import MaskigePrior, Reader
from unigs.systems.pixels import resize_labels


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the stages make of pictures.

    Attributes:
        maskige: uint8 [B, 3, H, W], decoded.
        classes: int64 [B, H, W] in 0..K; K is background.
        sure: float [B, H, W] in 0..1: probability of the code (FF), or of the class (FT-W).
    """

    maskige: Tensor
    classes: Tensor
    sure: Tensor


class Stages(nn.Module):
    """Prior, frozen posterior, and the way back to classes.

    Args:
        prior: picture -> codes.
        posterior: codes <-> maskige.
        painting: classes and their colours.
        reader: maskige -> classes, of FT-W, whose prior is frozen; None: the nearest colour.
    """

    def __init__(
        self,
        prior: MaskigePrior,
        posterior: Posterior,
        painting: Painting,
        reader: Reader | None = None,
    ) -> None:
        super().__init__()
        self.prior, self.posterior, self.reader = prior, posterior, reader
        self.painting = painting
        if reader is not None:
            prior.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Stages:
        """A frozen prior stays in evaluation mode, its normalisation too."""
        super().train(mode)
        if self.reader is not None:
            self.prior.train(False)
        return self

    @torch.no_grad()
    def forward(self, image: Tensor) -> Seen:
        """Predict uint8 [B, 3, H, W]: arg-max codes, decoded, read."""
        logits = self.prior.predict(self.prior.look(image))
        chance, codes = logits.softmax(1).max(1)  # [B, h, w]
        return self.read(codes, chance, image.shape[-2:])

    @torch.no_grad()
    def read(self, codes: Tensor, chance: Tensor, size: Sequence[int]) -> Seen:
        """Codes and their probability, [B, h, w], as classes at a picture's size."""
        maskige = self.decode(codes, size)
        if self.reader is None:
            classes = read_maskige(maskige, self.painting.palette)
            return Seen(maskige, classes, resize_labels(chance, size))
        sure, classes = self.reader(maskige).softmax(1).max(1)
        return Seen(maskige, classes, sure)

    def decode(self, codes: Tensor, size: Sequence[int]) -> Tensor:
        """Codes as a maskige of a picture's size, nearest; uint8 [B, 3, H, W]."""
        maskige = self.posterior.decode(codes)
        # Not smoothed: a colour between two is a third class's.
        return resize_labels(maskige.flatten(0, 1), size).unflatten(0, (-1, 3))
