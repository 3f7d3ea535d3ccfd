"""The mask codec: entity masks <-> colours (paper, Section 3.2)."""

from unigs.codec.decode import (
    Decoded,
    DecodeError,
    Mode,
    decode_colormap,
    decode_dichotomy,
    decode_kmeans,
    decode_refined,
)
from unigs.codec.paint import encode_colormap
from unigs.codec.palette import Palette, PaletteError
from unigs.records import Decoder

__all__ = [
    "DecodeError",
    "Decoded",
    "Decoder",
    "Mode",
    "Palette",
    "PaletteError",
    "decode_colormap",
    "decode_dichotomy",
    "decode_kmeans",
    "decode_refined",
    "encode_colormap",
]
