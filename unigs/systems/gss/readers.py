"""What learns to read a decoded maskige: pixels -> logits of classes (Section 3).

The other way is the nearest colour, which nothing learns (``codec.maskige``).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from unigs.systems.gss.windows import Windows

WINDOW_DIM, WINDOW_HEADS, WINDOW = 128, 4, 7
"""Of FT-W, as in the paper."""

CONV_DIM = 64
"""Of the layers of FT and TT; the paper names three layers and no width."""


class Reader(nn.Module):
    """A maskige's pixels, float -1..1 [B, 3, H, W] -> logits of classes, float [B, K, H, W]."""

    KIND: ClassVar[str]
    """By which a folder names it."""


class ConvReader(Reader):
    """Three convolutions: the inverse of FT and TT.

    Args:
        classes: K.
    """

    KIND = "convolutions"

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, CONV_DIM, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(CONV_DIM, CONV_DIM, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(CONV_DIM, classes, 3, padding=1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


class WindowReader(Reader):
    """A Swin layer between two of 1 x 1: the inverse of FT-W.

    Args:
        classes: K.
    """

    KIND = "windows"

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(3, WINDOW_DIM, 1)
        self.windows = Windows(WINDOW_DIM, 1, WINDOW_HEADS, WINDOW)
        self.head = nn.Linear(WINDOW_DIM, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.windows(self.widen(pixels))).permute(0, 3, 1, 2)


READERS: dict[str, type[Reader]] = {kind.KIND: kind for kind in (ConvReader, WindowReader)}
