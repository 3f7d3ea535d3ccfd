"""Makers of assets: bases of random weights, the autoencoders, GSS' first stage, the judge."""

from unigs.recipes.autoencoder import Autoencoder
from unigs.recipes.judge import Judge
from unigs.recipes.maskige import Maskige
from unigs.recipes.vq import VQ

__all__ = ["VQ", "Autoencoder", "Judge", "Maskige"]
