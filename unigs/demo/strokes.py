"""Layers of a browser's editor -> a mask, or the regions of a label map.

In: uint8 [h, w, 4] layers, what was painted on them opaque, of the size of the screen. Out: bool or
int maps. No torch, no gradio.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from unigs.pictures import colour_labels
from unigs.records import UnigsError

OPAQUE = 127
"""Paint counts from here on, of 255: an edge's pixel belongs to a stroke that covers half of it."""

NEAR = 24
"""Largest distance of a channel at which a pixel has a brush's colour; others are edges."""

BRUSHES = 6


def list_colours() -> np.ndarray:
    """The display colours of labels 1..``BRUSHES``, uint8 [N, 3]; the brushes of the page."""
    return colour_labels(np.arange(BRUSHES + 1)[None])[:, 0, 1:].T


def read_mask(layers: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """What is painted on any layer, at the size of the picture.

    Args:
        layers: uint8 [h, w, 4].
        size: width and height of the picture, pixels.

    Returns:
        bool [H, W].

    Raises:
        UnigsError: nothing is painted.
    """
    painted = [layer[..., 3] > OPAQUE for layer in layers]
    if not any(mask.any() for mask in painted):
        raise UnigsError("expected paint over what is to be filled, got none: use the brush first")
    fitted = [Image.fromarray(mask).resize(size, Image.Resampling.NEAREST) for mask in painted]
    return np.logical_or.reduce([np.asarray(mask) for mask in fitted])


def read_regions(layers: Sequence[np.ndarray], colours: np.ndarray) -> np.ndarray:
    """The brush of each painted pixel.

    Strokes have soft edges, which mix colours: a pixel of none takes the nearest pixel's that has
    one.

    Args:
        layers: uint8 [h, w, 4] of one size; a later one covers those before.
        colours: of the brushes, uint8 [N, 3].

    Returns:
        int32 [h, w]; 0 = not painted, 1..N the brush.

    Raises:
        UnigsError: nothing is painted.
    """
    from scipy import ndimage  # late: it takes half a second

    if not any((layer[..., 3] > OPAQUE).any() for layer in layers):
        raise UnigsError("expected painted regions, got none: choose a colour and paint")
    labels = np.zeros(layers[0].shape[:2], np.int32)
    for layer in layers:
        far = np.abs(layer[..., None, :3].astype(np.int16) - colours).max(-1)  # [h, w, N]
        painted = layer[..., 3] > OPAQUE
        clear = painted & (far.min(-1) <= NEAR)
        if not clear.any():
            raise UnigsError("expected paint in the colours of the page's brushes, got others")
        near = ndimage.distance_transform_edt(~clear, return_distances=False, return_indices=True)
        labels = np.where(painted, far.argmin(-1)[tuple(near)] + 1, labels)
    return labels.astype(np.int32)
