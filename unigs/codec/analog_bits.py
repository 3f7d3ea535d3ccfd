"""Panoptic map -> analog bits and back: the code that Pix2Seq-D generates (arXiv 2210.06366).

In: a class map and an id map, ints [B, H, W]. Classes are shifted by one, so that 0 is void; id 0
is none. Out: float bits [B, class_bits + id_bits, H, W], class bits first and inside a group the
**least significant bit first**; a bit is ``(2 * bit - 1) * scale`` ("Analog Bits", arXiv
2208.04202, Section 2). Stands between the label maps and the denoiser of ``systems.pix2seq_d``,
which predicts logits over the integers of each group (:func:`expected_bits`) and whose answer
:func:`decode_bits` and ``panoptic_ids.decode_panoptic`` read. No weights; on the maps' device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unigs.records import UnigsError

MOST_BITS = 16
"""Of a group: labels travel as uint16 (``records.Annotated``)."""


class BitsError(UnigsError):
    """Maps or logits that do not fit the code."""


@dataclass(frozen=True)  # no slots: the command line reads its fields
class BitCode:
    """How many bits stand for class and id, and how large they are.

    Attributes:
        class_bits: bits of the class, 1..16; void is one of the 2**class_bits integers.
        id_bits: bits of the instance id, 1..16; 0, none, is one of the 2**id_bits integers.
        scale: magnitude of a bit, > 0. A small one makes denoising harder at a given time, which
            the paper found to be its key setting (Section 3, input scaling: 0.1).
    """

    class_bits: int = 8
    id_bits: int = 8
    scale: float = 0.1

    def __post_init__(self) -> None:
        for name in ("class_bits", "id_bits"):
            if not 1 <= getattr(self, name) <= MOST_BITS:
                raise BitsError(
                    f"expected {name} in 1..{MOST_BITS}, got {getattr(self, name)}, in BitCode"
                )
        if not 0 < self.scale < float("inf"):
            raise BitsError(f"expected a finite scale > 0, got {self.scale}, in BitCode")

    @property
    def channels(self) -> int:
        """Of the analog bits."""
        return self.class_bits + self.id_bits

    @property
    def logit_channels(self) -> int:
        """One for each integer of each group."""
        return 2**self.class_bits + 2**self.id_bits

    @property
    def most_class(self) -> int:
        """The largest class it holds, shifted by one."""
        return 2**self.class_bits - 1

    @property
    def most_id(self) -> int:
        return 2**self.id_bits - 1


def encode_bits(classes: Tensor, ids: Tensor, code: BitCode) -> Tensor:
    """Write class and id of each pixel as analog bits (Section 3).

    Args:
        classes: ints [B, H, W], 0 is void, class k is k + 1, at most ``code.most_class``.
        ids: ints [B, H, W], 0 is none, at most ``code.most_id``.
        code: bits and scale.

    Returns:
        float32 [B, class_bits + id_bits, H, W], -scale or scale.

    Raises:
        BitsError: maps of another shape, not ints, negative, or with more than the code holds.

    Example:
        >>> six = torch.tensor([[[6]]])
        >>> encode_bits(six, six * 0, BitCode(4, 1, 1.0)).flatten().tolist()
        [-1.0, 1.0, 1.0, -1.0, -1.0]
    """
    check_map(classes, "classes", "encode_bits", code.most_class)
    check_map(ids, "ids", "encode_bits", code.most_id)
    check_pair(classes, ids, "encode_bits")
    signs = [_to_signs(classes, code.class_bits, 1), _to_signs(ids, code.id_bits, 1)]
    return torch.cat(signs, 1) * code.scale


def decode_bits(
    bits: Tensor,
    code: BitCode,
    *,
    most_class: int | None = None,
    most_id: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Read class and id of each pixel by the sign of its bits (Section 3, inference).

    Args:
        bits: float [B, class_bits + id_bits, H, W], of any magnitude.
        code: bits and scale; only signs are read.
        most_class: the largest class in use, shifted by one; a larger integer is clipped to it.
        most_id: the largest id in use, likewise. Both default to what the code holds.

    Returns:
        Classes, shifted by one, and ids: int64 [B, H, W] twice.

    Raises:
        BitsError: wrong shape or dtype.

    Examples:
        >>> maps = torch.tensor([[[6]]]), torch.tensor([[[200]]])
        >>> [int(m) for m in decode_bits(encode_bits(*maps, BitCode()), BitCode())]
        [6, 200]
    """
    _check_channels(bits, code.channels, "bits", "decode_bits")
    most_class = code.most_class if most_class is None else most_class
    most_id = code.most_id if most_id is None else most_id
    one, two = (bits > 0).long().split([code.class_bits, code.id_bits], 1)
    return _to_integers(one).clamp(max=most_class), _to_integers(two).clamp(max=most_id)


def split_logits(logits: Tensor, code: BitCode) -> tuple[Tensor, Tensor]:
    """Part logits into the groups, whose cross-entropy targets are the classes and the ids.

    Args:
        logits: float [B, 2**class_bits + 2**id_bits, H, W].
        code: bits of the groups.

    Returns:
        float [B, 2**class_bits, H, W] and [B, 2**id_bits, H, W].
    """
    _check_channels(logits, code.logit_channels, "logits", "split_logits")
    one, two = logits.split([2**code.class_bits, 2**code.id_bits], 1)
    return one, two


def expected_bits(logits: Tensor, code: BitCode) -> Tensor:
    """The mean of the analog bits under the softmax of each group: x_0 (Section 3, loss).

    Args:
        logits: float [B, 2**class_bits + 2**id_bits, H, W].
        code: bits and scale.

    Returns:
        float32 [B, class_bits + id_bits, H, W] in -scale..scale, differentiable.

    Raises:
        BitsError: wrong shape or dtype.
    """
    groups = zip(split_logits(logits, code), (code.class_bits, code.id_bits))
    with torch.autocast(logits.device.type, enabled=False):
        means = [_mean_signs(part.float(), bits) for part, bits in groups]
    # Scaled last: signs survive every matrix precision, so that certain logits give exact bits.
    return torch.cat(means, 1).clamp(-1, 1) * code.scale


def _mean_signs(logits: Tensor, bits: int) -> Tensor:
    """Mean sign of each bit of float [B, 2**bits, H, W], float32 [B, bits, H, W]."""
    signs = _to_signs(torch.arange(2**bits, device=logits.device), bits, -1)
    return torch.einsum("bkhw,kc->bchw", logits.softmax(1), signs)


def _to_signs(integers: Tensor, bits: int, dim: int) -> Tensor:
    """Bits of integers as -1 or 1, least significant first along a new dimension, float32."""
    places = [(integers >> place & 1) for place in range(bits)]
    return torch.stack(places, dim).float() * 2 - 1


def _to_integers(bits: Tensor) -> Tensor:
    """The inverse of :func:`_to_signs` for int64 0 or 1, [B, bits, H, W] -> [B, H, W]."""
    place = torch.arange(bits.shape[1], device=bits.device)[:, None, None]
    return (bits << place).sum(1)


def check_map(values: Tensor, name: str, where: str, most: int | None = None) -> None:
    """Refuse what is no int map [B, H, W] in 0..most."""
    if values.dim() != 3:
        raise BitsError(f"expected {name} [B, H, W], got {list(values.shape)}, in {where}")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise BitsError(f"expected {name} of integers, got {values.dtype}, in {where}")
    if not values.numel():
        return
    low, high = int(values.min()), int(values.max())
    if low < 0:
        raise BitsError(f"expected {name} >= 0, got {low}, in {where}")
    if most is not None and high > most:
        raise BitsError(f"expected {name} of at most {most} (2**bits - 1), got {high}, in {where}")


def check_pair(classes: Tensor, ids: Tensor, where: str) -> None:
    if classes.shape != ids.shape:
        raise BitsError(
            f"expected ids of the shape of classes, {list(classes.shape)}, got {list(ids.shape)},"
            f" in {where}"
        )


def _check_channels(values: Tensor, channels: int, name: str, where: str) -> None:
    if values.dim() != 4 or values.shape[1] != channels:
        raise BitsError(
            f"expected {name} [B, {channels}, H, W], got {list(values.shape)}, in {where}"
        )
    if not values.is_floating_point():
        raise BitsError(f"expected float {name}, got {values.dtype}, in {where}")
