"""The mask codec: entity masks <-> colours (paper, Section 3.2)."""

from unigs.codec.decode import Decoded, DecodeError, decode_colormap
from unigs.codec.palette import PaletteError, encode_colormap

__all__ = ["DecodeError", "Decoded", "PaletteError", "decode_colormap", "encode_colormap"]
