"""Makers of assets: bases of random weights, the autoencoders, GSS' first stage, the judge.

Names of classes are imported late, so that ``unigs base --help`` starts no torch.
"""

from importlib import import_module
from typing import Any

_PLACES = {
    "Autoencoder": "unigs.recipes.autoencoder",
    "Judge": "unigs.recipes.judge",
    "Maskige": "unigs.recipes.maskige",
    "VQ": "unigs.recipes.vq",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
