"""The first stage of GSS: classes -> maskige -> codes -> maskige -> classes, without a picture.

In: class maps. Out: codes, and what is read of them. Painting and reading are given or learnt
(``recipes.Maskige``, the variants FT, TF and TT); the autoencoder between them is frozen. What was
learnt has a folder, from which a prior's training begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unigs.codec.maskige import paint_maskige, read_maskige
from unigs.records import UnigsError
from unigs.systems.folders import load_model, save_model
from unigs.systems.gss.discrete import Posterior
from unigs.systems.gss.painting import Painting
from unigs.systems.gss.posterior import build_posterior
from unigs.systems.gss.readers import READERS, Reader
from unigs.systems.pixels import check_finite, resize_labels, to_signed
from unigs.weights import in_words

FOLDER = "Maskige"


class Coder(nn.Module):
    """Painting, frozen posterior, and the way back to classes.

    Args:
        posterior: maskige <-> codes.
        painting: classes and their colours.
        reader: maskige -> classes; None: the nearest colour.
    """

    def __init__(
        self, posterior: Posterior, painting: Painting, reader: Reader | None = None
    ) -> None:
        super().__init__()
        self.posterior, self.painting, self.reader = posterior, painting, reader

    def encode(self, classes: Tensor) -> Tensor:
        """int64 [B, H, W] in 0..K, sides multiples of the stride -> codes, int64 [B, h, w]."""
        return self.posterior.codes(paint_maskige(classes, self.painting.palette))

    def decode(self, codes: Tensor, size: Sequence[int]) -> Tensor:
        """Codes as a maskige of a picture's size, nearest; uint8 [B, 3, H, W]."""
        return resize_maskige(self.posterior.decode(codes), size)

    def name(self, maskige: Tensor) -> tuple[Tensor, Tensor | None]:
        """Read a decoded maskige.

        Args:
            maskige: uint8 [B, 3, H, W].

        Returns:
            Classes, int64 [B, H, W] in 0..K; their probability, float, if a reader gives one.

        Raises:
            UnigsError: its logits are not finite.
        """
        if self.reader is None:
            return read_maskige(maskige, self.painting.palette), None
        logits = check_finite(self.reader(to_signed(maskige)), "logits", "the reader of colours")
        chance, classes = logits.softmax(1).max(1)
        return classes, chance

    @torch.no_grad()
    def reconstruct(self, classes: Tensor, enlarge: int) -> Tensor:
        """Classes there and back, the ceiling of any prior; int64 [B, H, W] in 0..K, both.

        Args:
            classes: at a picture's size.
            enlarge: maskiges are larger than pictures by this.
        """
        size = classes.shape[-2:]
        codes = self.encode(resize_labels(classes, [side * enlarge for side in size]))
        return self.name(self.decode(codes, size))[0]


def resize_maskige(maskige: Tensor, size: Sequence[int]) -> Tensor:
    """[B, 3, H, W] to another size; not smoothed: a colour between two is a third class's."""
    return resize_labels(maskige.flatten(0, 1), size).unflatten(0, (-1, 3))


def describe_coder(coder: Coder) -> dict[str, Any]:
    """Plain values by which :func:`build_coder` makes the same networks."""
    return {
        "painting": coder.painting.to_json(),
        "reader": coder.reader.KIND if coder.reader else None,
        "vq": coder.posterior.describe(),
    }


def build_coder(settings: Mapping[str, Any], where: str) -> Coder:
    """Networks of random weights by :func:`describe_coder`.

    Raises:
        UnigsError: no such painting or reader.
    """
    painting = Painting.from_json(settings["painting"], where)
    kind = settings["reader"]
    if kind is True:  # a folder of FT-W from when there was one kind
        kind = "windows"
    if kind and kind not in READERS:
        raise UnigsError(f"expected a reader of {', '.join(READERS)}, got {kind!r}, at {where}")
    reader = READERS[kind](len(painting.colours)) if kind else None
    return Coder(build_posterior(settings["vq"]), painting, reader)


def save_coder(coder: Coder, variant: str, folder: str) -> None:
    """Write a folder of the first stage, the posterior inside, float32.

    Args:
        coder: as it was learnt.
        variant: FT, TF or TT.
        folder: an older one there is replaced at once or not at all.

    Raises:
        UnigsError: other files lie there, or weights are not finite.
    """
    settings = {"variant": variant, **describe_coder(coder)}
    save_model(Path(folder), FOLDER, settings, coder.state_dict(), half=False)


def load_coder(folder: str) -> tuple[Coder, str]:
    """The first stage of a folder, in evaluation mode; and its variant.

    Raises:
        UnigsError: no such folder, or a damaged one.
    """
    settings, weights = load_model(Path(folder), FOLDER)
    with in_words("the settings and weights of a maskige", folder):
        coder = build_coder(settings, folder)
        coder.load_state_dict(weights)
        return coder.float().eval(), str(settings["variant"])
