"""What a model found or drew, as files that other tools read: records in, files out. No torch."""

from unigs.outputs.encode import encode_grey16, encode_labels, encode_pixels
from unigs.outputs.folder import OutFolder
from unigs.outputs.found import Found, Segment

__all__ = ["Found", "OutFolder", "Segment", "encode_grey16", "encode_labels", "encode_pixels"]
