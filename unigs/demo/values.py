"""What users type, and the legend that they read. No torch, no gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unigs.pictures import colour_labels
from unigs.records import UnigsError


def split_words(text: str) -> list[str]:
    """Names between commas.

    Raises:
        UnigsError: none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UnigsError("expected words for what is asked, such as heart, moon; got none")
    return names


def name_regions(labels: np.ndarray, names: Sequence[str]) -> list[str]:
    """The names of the brushes that were used, in their order.

    Raises:
        UnigsError: one has none.
    """
    used = [k for k in range(1, len(names) + 1) if (labels == k).any()]
    for k in used:
        if not names[k - 1].strip():
            raise UnigsError(f"expected a name for colour {k}, which is painted, got none")
    return [names[k - 1].strip() for k in used]


def list_legend(segments: Sequence[Mapping[str, Any]], least: float) -> dict[int, tuple[str, str]]:
    """By label: a line on the mask, and its display colour in hex.

    Args:
        segments: of the masks, as a verb's record has them.
        least: score, 0..1; masks below it are left out.
    """
    legend = {}
    for segment in segments:
        if segment["score"] >= least:
            label = segment["label"]
            red, green, blue = colour_labels(np.array([[label]]))[:, 0, 0].tolist()
            line = f"{label} {segment['category']} {segment['score']:.2f}"
            legend[label] = (line, f"#{red:02x}{green:02x}{blue:02x}")
    return legend
