"""The mask codec: entity masks <-> colours (paper, Section 3.2)."""

from unigs.codec.decode import Decoded, DecodeError, Decoder, Mode, decode_colormap
from unigs.codec.palette import Palette, PaletteError, encode_colormap

__all__ = [
    "DecodeError",
    "Decoded",
    "Decoder",
    "Mode",
    "Palette",
    "PaletteError",
    "decode_colormap",
    "encode_colormap",
]
