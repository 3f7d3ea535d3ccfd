"""Laws of the filter that lends a colormap the picture's outlines."""

from __future__ import annotations

import pytest
import torch

from unigs.codec.guided_filter import filter_colormap
from unigs.records import UnigsError


def two_halves(left: int, right: int, at: int, size: int = 64) -> torch.Tensor:
    """Grey levels ``left`` and ``right`` of a column ``at``; uint8 [1, 3, size, size]."""
    picture = torch.full((1, 3, size, size), left, dtype=torch.uint8)
    picture[..., at:] = right
    return picture


@pytest.mark.parametrize("size", [64, 160])
def test_outlines_move_to_where_the_picture_has_them(size: int) -> None:
    at, stray = size // 2, size // 32
    image = two_halves(60, 180, at, size)
    colormap = two_halves(0, 128, at + stray, size)
    found = filter_colormap(colormap, image)
    right = (found.int() - two_halves(0, 128, at, size).int()).abs() < 64
    assert right.all()
    assert not (colormap == two_halves(0, 128, at, size)).all()


def test_far_colours_do_not_mix_where_the_picture_shows_no_outline() -> None:
    image = torch.full((1, 3, 64, 64), 90, dtype=torch.uint8)
    colormap = two_halves(0, 255, 32)
    assert (filter_colormap(colormap, image).int() - colormap.int()).abs().max() < 64


def test_mirrors_and_batches_commute_with_it() -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randint(0, 256, (3, 3, 40, 56), generator=generator).byte()
    colormap, image = draw(), draw()
    found = filter_colormap(colormap, image)
    mirrored = filter_colormap(colormap.flip(-1), image.flip(-1)).flip(-1)
    assert (found.int() - mirrored.int()).abs().max() <= 1  # sums in another order
    assert torch.equal(found[1:2], filter_colormap(colormap[1:2], image[1:2]))


def test_one_colour_stays_at_every_shape() -> None:
    for shape in ((1, 1), (1, 9), (3, 70)):
        colormap = torch.full((2, 3, *shape), 77, dtype=torch.uint8)
        assert torch.equal(filter_colormap(colormap, torch.zeros_like(colormap)), colormap)


def test_other_shapes_and_dtypes_are_refused() -> None:
    colormap = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    for image in (colormap.float(), colormap[0], colormap[..., :4]):
        with pytest.raises(UnigsError, match="expected image uint8"):
            filter_colormap(colormap, image)
