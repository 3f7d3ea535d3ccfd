"""Laws of picture files: content decides, stored pixels count, a tag goes, pixels stay."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from unigs import images
from unigs.images import (
    UnreadableImage,
    check_image,
    decode_image,
    decode_picture,
    encode_image,
    read_header,
    strip_orientation,
    turn_upright,
)


def draw(height=40, width=60):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4, y * 6, (x + y) * 2], -1).astype(np.uint8)


def encode(image, format, orientation=None, **options):
    if orientation:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        exif[ExifTags.Base.Make] = "camera"
        options["exif"] = exif
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def test_lossless_round_trip():
    np.testing.assert_array_equal(decode_image(encode_image(draw(), "PNG")), draw())


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "LA", "1"])
def test_every_mode_comes_out_as_rgb(mode):
    format = "JPEG" if mode == "CMYK" else "PNG"
    pixels = decode_image(encode(Image.fromarray(draw()).convert(mode), format))
    assert pixels.shape == (40, 60, 3)
    assert pixels.dtype == np.uint8
    if mode in ("L", "LA", "1"):
        assert (pixels == pixels[..., :1]).all()
    if mode == "CMYK":  # not inverted
        assert np.abs(pixels.astype(int) - draw()).mean() < 12
    if mode == "RGBA":
        np.testing.assert_array_equal(pixels, draw())


def test_16_bit_is_scaled_not_clipped():
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    pixels = decode_image(encode(Image.fromarray(deep), "PNG"))
    np.testing.assert_array_equal(pixels[..., 0].ravel(), np.arange(256))


def test_draft_suffices_and_keeps_aspect():
    data = encode_image(draw(400, 600))
    small = np.array(decode_picture(data, at_least_px=(70, 50)))
    assert 50 <= small.shape[0] < 400
    assert 70 <= small.shape[1] < 600
    assert decode_picture(data, at_least_px=(600, 400)).size == (600, 400)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "picture file empty"),
        (b"not a picture", "picture unreadable"),
        (encode_image(draw())[:-200], "picture unreadable"),
        (encode_image(draw(), "PNG")[:-60], "picture unreadable"),
    ],
)
def test_bad_data_is_one_error_with_a_reason(data, reason):
    with pytest.raises(UnreadableImage) as caught:
        check_image(data)
    assert caught.value.reason == reason


def test_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(UnreadableImage, match="larger than 1000 pixels"):
        decode_image(encode_image(draw()))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_stripping_changes_no_stored_pixel(format, orientation):
    data = encode(Image.fromarray(draw()), format, orientation)
    assert read_header(data).orientation == orientation
    bare = strip_orientation(data)
    assert read_header(bare).orientation == 1
    np.testing.assert_array_equal(decode_image(bare), decode_image(data))
    if format == "JPEG":  # nothing but the tag's value differs
        assert len(bare) == len(data)
        assert sum(a != b for a, b in zip(bare, data, strict=True)) == (orientation != 1)


def test_stripping_reaches_xmp():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    data = encode(Image.fromarray(draw()), "JPEG", xmp=xmp)
    assert read_header(data).orientation == 6
    assert read_header(strip_orientation(data)).orientation == 1


@pytest.mark.parametrize("orientation", range(2, 9))
def test_turning_gives_what_a_viewer_shows(orientation):
    turns = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }
    data = encode(Image.fromarray(draw()), "PNG", orientation)
    turned = turn_upright(data)
    np.testing.assert_array_equal(decode_image(turned), turns[orientation](draw()))
    assert read_header(turned).orientation == 1
