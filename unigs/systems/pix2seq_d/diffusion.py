"""Noise and its removal, in continuous time: the diffusion of Pix2Seq-D (2210.06366, Section 3).

In: clean bits, or a function that finds them in noisy ones. Out: noisy bits, or bits from noise.
Time t runs from 0, clean, to 1, noise; gamma(t) is the share of signal. No network in here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unigs.codec.panoptic_ids import LEAST_PX
from unigs.records import UnigsError
from unigs.systems.pixels import check_finite
from unigs.systems.sampling import Sampling

SHARED = {"num_inference_steps": "steps", "seed": "seed"}
"""Fields of the house's ``Sampling`` that mean something here, and their names in ours."""


@dataclass(frozen=True)  # no slots: the command line reads its fields
class BitSampling:
    """How bits are sampled and read.

    Args:
        steps: of DDIM (paper: 5 to 50, released: 20; 32 of a clip's first frame), 1 or more.
        later_steps: of a frame that follows on others, 1 or more (paper: 8).
        td: asymmetric time intervals: each step aims this many steps further than it goes, 0 or
            more (released: 1 or 2); 0 is plain DDIM.
        least_px: ids of fewer pixels are void (paper: 40, for large pictures).
        seed: with a sample's index it decides the noise.
    """

    steps: int = 20
    td: float = 1.0
    least_px: int = LEAST_PX
    seed: int = 0
    later_steps: int = 8

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 1),
            ("later_steps", 1),
            ("td", 0),
            ("least_px", 1),
            ("seed", 0),
        ):
            if not least <= getattr(self, name) < float("inf"):
                raise UnigsError(
                    f"expected {least} or more, got {getattr(self, name)!r}, "
                    f"at model.sampling.{name}"
                )

    def change(self, asked: Sampling | None) -> BitSampling:
        """This one, but for what the house's record says.

        Raises:
            UnigsError: that names what this system does not know.
        """
        given = asked.list_given() if asked else {}
        if unknown := sorted(given.keys() - SHARED.keys()):
            raise UnigsError(
                f"expected {' or '.join(SHARED)} alone, got {', '.join(unknown)}, "
                "in the sampling of Pix2SeqD"
            )
        return replace(self, **{SHARED[name]: value for name, value in given.items()})


def signal_share(time: Tensor) -> Tensor:
    """gamma(t) = cos^2(pi / 2 (t + 0.0002) / 1.00025), of t in 0..1."""
    return torch.cos(torch.pi / 2 * (time + 0.0002) / 1.00025) ** 2


def add_noise(clean: Tensor, noise: Tensor, gamma: Tensor) -> Tensor:
    """x_t = sqrt(gamma) x_0 + sqrt(1 - gamma) eps, for gamma [B]."""
    share = gamma.view(-1, *[1] * (clean.dim() - 1))
    return share.sqrt() * clean + (1 - share).sqrt() * noise


def list_times(steps: int, td: float) -> list[tuple[float, float]]:
    """Now and next of each step k of T: 1 - k / T, and max(1 - (k + 1 + td) / T, 0).

    Example:
        >>> list_times(2, 0.0), list_times(2, 0.5)
        ([(1.0, 0.5), (0.5, 0.0)], [(1.0, 0.25), (0.5, 0.0)])
    """
    return [(1 - k / steps, max(1 - (k + 1 + td) / steps, 0.0)) for k in range(steps)]


def sample_bits(
    predict: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    scale: float,
    sampling: BitSampling,
) -> Tensor:
    """DDIM on x_0 with asymmetric time intervals (Section 3, inference; "Analog Bits", 2.4).

    A step aims past the time at which the next one looks, so that the network is shown bits that
    are cleaner than it is told.

    Args:
        predict: (noisy [B, C, h, w], gamma [B]) -> x_0 [B, C, h, w].
        noise: standard normal [B, C, h, w].
        scale: of the bits, to which each x_0 is clipped.
        sampling: steps and td.

    Returns:
        The last x_0, [B, C, h, w] in -scale..scale.

    Raises:
        UnigsError: an x_0 is not finite, before it is clipped.
    """
    noisy, clean, peaks = noise, noise, []
    for pair in list_times(sampling.steps, sampling.td):
        now, then = signal_share(torch.tensor(pair, dtype=torch.float64))
        told = noise.new_full((len(noise),), float(now))
        output = predict(noisy, told)
        peaks.append(output.abs().amax())
        clean = output.clamp(-scale, scale)
        left = (noisy - float(now.sqrt()) * clean) / float((1 - now).sqrt())
        noisy = float(then.sqrt()) * clean + float((1 - then).sqrt()) * left
    check_finite(torch.stack(peaks), "bits", "the denoiser")  # the only wait
    return clean
