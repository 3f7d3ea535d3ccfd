"""What the metrics that need a network share: the optional packages, pictures, weight files.

Nothing here downloads. torchvision comes only with the extra ``eval``, because a torchvision of
another build than torch breaks every import of transformers; so nothing of the extra is imported
before it is used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import torch

from unigs.records import UnigsError


def import_extra(module: str, purpose: str) -> ModuleType:
    """Import a package of the extra ``eval``.

    Raises:
        UnigsError: it is missing, or it breaks on import.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        raise UnigsError(
            f"expected the package {module.split('.')[0]} for {purpose}: "
            f"pip install 'unigs[eval]' (torchvision must be of the same build as torch); "
            f"got {type(error).__name__}: {error}; in unigs.metrics"
        ) from error


def find_weights(path: str | Path | None, option: str, what: str) -> Path:
    """A weight file or folder that exists.

    Args:
        path: as given by the user; None where nothing was given.
        option: what the user has to pass, for the message.
        what: what the weights are and where they come from, for the message.

    Raises:
        UnigsError: nothing given, or nothing there.
    """
    if path is None:
        raise UnigsError(f"expected {option}: {what}; got none, and nothing is downloaded unasked")
    found = Path(path).expanduser()
    if not found.exists():
        raise UnigsError(f"expected {option}: {what}; got {found}, which does not exist")
    return found


def check_pictures(images: torch.Tensor) -> torch.Tensor:
    """Pictures as uint8 [B, 3, H, W].

    Args:
        images: uint8, or float in 0..1 of any precision, [B, 3, H, W].

    Raises:
        UnigsError: another shape, NaN, or floats outside of 0..1.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise UnigsError(
            f"expected pictures [B, 3, H, W]; got {tuple(images.shape)}; in a picture metric"
        )
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise UnigsError(f"expected uint8 or float; got {images.dtype}; in a picture metric")
    exact = images.float()
    bad = (~torch.isfinite(exact)).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise UnigsError(f"expected finite pictures; got NaN or inf; at places {bad} of the batch")
    if exact.numel() and not 0 <= float(exact.min()) <= float(exact.max()) <= 1:
        raise UnigsError(
            f"expected float pictures in 0..1; got {float(exact.min()):.3g}.."
            f"{float(exact.max()):.3g}; in a picture metric"
        )
    return (exact * 255).round().to(torch.uint8)
