"""Makers of the assets that ship: bases of random weights, the autoencoders, the judge."""

from unigs.recipes.autoencoder import Autoencoder
from unigs.recipes.judge import Judge
from unigs.recipes.vq import VQ

__all__ = ["VQ", "Autoencoder", "Judge"]
