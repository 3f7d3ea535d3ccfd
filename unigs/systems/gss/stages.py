"""All stages of GSS together: picture -> codes -> maskige -> classes.

In: uint8 pictures. Out: the decoded maskige at their size, and each pixel's class and how sure it
is. What trains and what predicts hold the same ``Stages``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from unigs.systems.gss.coder import Coder
from unigs.systems.gss.prior import MaskigePrior
from unigs.systems.pixels import check_finite, resize_labels


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the stages make of pictures.

    Attributes:
        maskige: uint8 [B, 3, H, W], decoded.
        classes: int64 [B, H, W] in 0..K; K is background.
        sure: float [B, H, W] in 0..1: probability of the code, or of the class by a reader.
    """

    maskige: Tensor
    classes: Tensor
    sure: Tensor


class Stages(Coder):
    """A prior before the first stage.

    Args:
        prior: picture -> codes.
        coder: codes <-> classes.
        trains: the only part that is trained; the others stay in evaluation mode.
    """

    def __init__(
        self, prior: MaskigePrior, coder: Coder, trains: Literal["prior", "reader"] = "prior"
    ) -> None:
        super().__init__(coder.posterior, coder.painting, coder.reader)
        self.prior, self.trains = prior, trains
        self.requires_grad_(False)
        self.trained.requires_grad_(True)

    @property
    def trained(self) -> Any:
        """The part that is trained."""
        return self.prior if self.trains == "prior" else self.reader

    def train(self, mode: bool = True) -> Stages:
        """What is frozen stays in evaluation mode, its normalisation too."""
        super().train(False)
        self.trained.train(mode)
        return self

    @torch.no_grad()
    def forward(self, image: Tensor) -> Seen:
        """Predict uint8 [B, 3, H, W]: arg-max codes, decoded, read.

        Raises:
            UnigsError: logits that are not finite.
        """
        logits = self.prior.predict(self.prior.look(image))
        chance, codes = check_finite(logits, "logits", "the prior").softmax(1).max(1)  # [B, h, w]
        return self.read(codes, chance, image.shape[-2:])

    @torch.no_grad()
    def read(self, codes: Tensor, chance: Tensor, size: Sequence[int]) -> Seen:
        """Codes and their probability, [B, h, w], as classes at a picture's size."""
        maskige = self.decode(codes, size)
        classes, sure = self.name(maskige)
        return Seen(maskige, classes, resize_labels(chance, size) if sure is None else sure)
