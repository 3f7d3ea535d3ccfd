"""Noise and timesteps, keyed by (seed, index): a resumed or re-scaled run sees the same ones.

On the CPU, so that every device sees the same numbers; in the loader's processes, where there are
such, so that no step waits for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unigs.records import Batch, Latents
from unigs.seeds import derive_seed


def training_noise(batch: Batch | Latents, shape: Sequence[int]) -> torch.Tensor:
    """What a training step adds, float32 [B, *shape]: as the loader drew it, else drawn here."""
    if batch.noise is not None:
        return batch.noise
    return draw_noise(batch.seed, batch.index.tolist(), shape, "noise")


def draw_noise(
    seed: int, indices: Sequence[int], shape: Sequence[int], purpose: str
) -> torch.Tensor:
    """Standard normal float32 [B, *shape] on the CPU, one keyed generator per sample."""
    keyed = key_generators(seed, indices, purpose)
    return torch.stack([torch.randn(tuple(shape), generator=one) for one in keyed])


def draw_gumbel(
    seed: int, indices: Sequence[int], shape: Sequence[int], purpose: str
) -> torch.Tensor:
    """Standard Gumbel float32 [B, *shape] on the CPU, keyed like the noise."""
    keyed = key_generators(seed, indices, purpose)
    return -torch.stack([torch.empty(tuple(shape)).exponential_(generator=g) for g in keyed]).log()


def key_generators(seed: int, indices: Sequence[int], purpose: str) -> list[torch.Generator]:
    """One generator per sample."""
    seeds = [derive_seed(seed, int(index), purpose) for index in indices]
    return [torch.Generator().manual_seed(one) for one in seeds]


def draw_timesteps(seed: int, indices: Sequence[int], steps: int) -> torch.Tensor:
    """Uniform timesteps int64 [B] in 0..steps-1, keyed like the noise."""
    return torch.tensor([derive_seed(seed, int(i), "timestep") % steps for i in indices])


def draw_times(seed: int, indices: Sequence[int]) -> torch.Tensor:
    """Uniform times float64 [B] in 0..1, keyed like the noise."""
    return draw_uniform(seed, indices, "time")


def draw_uniform(seed: int, indices: Sequence[int], purpose: str) -> torch.Tensor:
    """Uniform float64 [B] in 0..1, keyed like the noise."""
    return torch.tensor(
        [derive_seed(seed, int(i), purpose) / 2**63 for i in indices], dtype=torch.float64
    )
