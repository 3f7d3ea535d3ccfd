"""Counter-based randomness: every draw is a pure function of (seed, index, purpose).

No generator state is ever saved. Resuming, or running on other ranks and workers, needs only the
index, because two purposes or two indices never share a stream (architecture, decision 2).
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, index: int, purpose: str) -> int:
    """A 63-bit seed for one purpose of one sample.

    Args:
        seed: the run's seed.
        index: the sample's place in the stream.
        purpose: what is drawn, e.g. ``"crop"``; streams of different purposes are independent.

    Returns:
        An int in 0..2**63 - 1, valid for ``torch.Generator.manual_seed``.
    """
    text = f"{seed}/{index}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def rng(seed: int, index: int, purpose: str) -> np.random.Generator:
    """A NumPy generator for one purpose of one sample; see :func:`derive_seed`."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, index, purpose)))
