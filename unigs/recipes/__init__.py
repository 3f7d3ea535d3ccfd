"""Makers of the assets that ship: bases of random weights, the autoencoder, the judge."""

from unigs.recipes.autoencoder import Autoencoder
from unigs.recipes.judge import Judge

__all__ = ["Autoencoder", "Judge"]
