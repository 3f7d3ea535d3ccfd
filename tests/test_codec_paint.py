"""Laws of painting: every entity its own colour, by place, whatever the labels' numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unigs.codec import Palette, PaletteError, encode_colormap
from unigs.codec.palette import SIZES, legal_colours
from unigs.records import Skips


@st.composite
def label_maps(draw: st.DrawFn, most: int = 121) -> torch.Tensor:
    """Label maps of any shape: speckle, blocks or few pixels; int64 [H, W] with gaps allowed."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    entities, block = draw(st.integers(1, most)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    coarse = (-(-height // block), -(-width // block))
    labels = torch.randint(0, entities + 1, coarse, generator=generator)
    labels = labels.repeat_interleave(block, 0).repeat_interleave(block, 1)
    return labels[:height, :width].contiguous()


def colours_by_label(labels: torch.Tensor, colormap: torch.Tensor) -> dict[int, tuple[int, ...]]:
    """The one colour of each label; fails if a label has two."""
    found = {}
    for label in labels.unique().tolist():
        (colour,) = colormap[:, labels == label].unique(dim=1).t().tolist()
        found[label] = tuple(colour)
    return found


@settings(max_examples=60, deadline=None)
@given(label_maps())
def test_every_entity_has_a_legal_colour_of_its_own(labels: torch.Tensor) -> None:
    found = colours_by_label(labels, encode_colormap(labels))
    assert len(set(found.values())) == len(found)
    legal = {tuple(colour) for colour in legal_colours().tolist()}
    assert set(found.values()) <= legal
    assert found.get(0, (0, 0, 0)) == (0, 0, 0)
    assert all(colour != (0, 0, 0) for label, colour in found.items() if label)


@settings(max_examples=30, deadline=None)
@given(label_maps(), st.integers(0, 2**31))
def test_colours_do_not_depend_on_the_numbers_of_entities(labels: torch.Tensor, seed: int) -> None:
    order = torch.randperm(121, generator=torch.Generator().manual_seed(seed)) + 1
    renamed = torch.cat((torch.zeros(1, dtype=torch.long), order))[labels]
    assert torch.equal(encode_colormap(renamed), encode_colormap(labels))


@settings(max_examples=20, deadline=None)
@given(label_maps(most=25), st.integers(0, 40), st.sampled_from(["location", "scaled", "random"]))
def test_a_largest_label_that_is_known_changes_no_colour(labels, more, kind) -> None:
    palette, seeds = Palette(kind, 5), [3]
    expected = encode_colormap(labels[None], palette, seeds=seeds)
    largest = int(labels.max()) + more
    assert torch.equal(
        encode_colormap(labels[None], palette, seeds=seeds, largest=largest), expected
    )


def test_colours_do_not_depend_on_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 60, (4, 20, 30), generator=generator)
    maps[1].clamp_(max=3)
    together = encode_colormap(maps)
    assert all(torch.equal(together[i], encode_colormap(maps[i])) for i in range(4))


@pytest.mark.parametrize("cells", [1, 7, 11])
def test_an_entity_alone_in_its_cell_gets_the_cells_colour(cells: int) -> None:
    size = 4 * cells
    for cell in range(cells * cells):
        row, column = divmod(cell, cells)
        labels = torch.zeros(size, size, dtype=torch.int32)
        labels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 9
        found = colours_by_label(labels, encode_colormap(labels, Palette(cells=cells)))
        assert found[9] == tuple(legal_colours()[Palette(cells=cells).colours()[cell]].tolist())


def test_on_a_clash_the_larger_stays_and_the_smaller_goes_to_the_nearest_free_cell() -> None:
    labels = torch.zeros(110, 110, dtype=torch.long)
    labels[50:60, 50:60] = 1  # cell (5, 5)
    labels[52:56, 56:59] = 2  # inside it, centre right of its middle: (5, 6) is nearest
    labels[52:58, 61:69] = 3  # at home in (5, 6), and larger than 2: 2 must go on
    home = Palette().colours().view(11, 11)
    found = colours_by_label(labels, encode_colormap(labels))
    number = {label: legal_colours().tolist().index(list(c)) for label, c in found.items()}
    assert number[1] == home[5, 5]
    assert number[3] == home[5, 6]
    assert number[2] == home[4, 5]  # the centre lies above the cell's middle
    paper = colours_by_label(labels, encode_colormap(labels, collisions="paper"))
    assert paper[1] == paper[2] != paper[3]


def test_full_board_of_121_and_one_too_many() -> None:
    labels = torch.arange(122).repeat(3, 1)
    assert len(set(colours_by_label(labels, encode_colormap(labels)).values())) == 122
    labels = torch.arange(123).repeat(3, 1)
    labels[2, 50] = 49  # entity 50 is the smallest
    with pytest.raises(PaletteError, match="at most 121 entities, got 122, in image 0"):
        encode_colormap(labels)
    skips = Skips()
    found = colours_by_label(labels, encode_colormap(labels, overflow="drop", skips=skips))
    assert skips.total == 1
    assert found[50] == (0, 0, 0)
    assert len(set(found.values())) == 122


def test_random_colours_are_distinct_and_a_function_of_the_seed() -> None:
    labels = torch.arange(1, 41).view(2, 4, 5)
    one = encode_colormap(labels, Palette("random"), seeds=[3, 4])
    assert len(set(colours_by_label(labels[0], one[0]).values())) == 20
    assert torch.equal(one[1], encode_colormap(labels[1], Palette("random"), seeds=[4]))
    assert not torch.equal(one, encode_colormap(labels, Palette("random"), seeds=[5, 4]))
    with pytest.raises(PaletteError, match="2 seeds, one per image, got none"):
        encode_colormap(labels, Palette("random"))


def draw_squares(*squares: tuple[int, int, int], side: int = 60) -> torch.Tensor:
    """Labels 1, 2, ... of squares (top, left, side), later ones on top of earlier ones."""
    labels = torch.zeros(side, side, dtype=torch.long)
    for label, (top, left, width) in enumerate(squares, 1):
        labels[top : top + width, left : left + width] = label
    return labels


@pytest.mark.parametrize("place", range(0, 46, 5))
def test_scaled_tells_a_thing_from_what_it_lies_on_wherever_it_lies(place: int) -> None:
    labels = draw_squares((0, 0, 60), (place, 20, 14))
    colours = colours_by_label(labels, encode_colormap(labels, Palette("scaled", 5)))
    assert colours[2][2] - colours[1][2] >= 128  # blue


def test_scaled_loses_blue_as_an_entity_grows_past_whole_cells() -> None:
    """Twelve pixels are one of five cells: classes change at 12, 24 and 36 and nowhere else."""
    blues = {}
    for width in range(2, 61):
        labels = draw_squares((30 - width // 2, 30 - width // 2, width))
        painted = encode_colormap(labels, Palette("scaled", 5))
        blues[width] = colours_by_label(labels, painted)[1][2]
    assert [w for w in range(3, 61) if blues[w] < blues[w - 1]] == [12, 24, 36]
    assert len(set(blues.values())) == SIZES


@pytest.mark.parametrize("palette", [Palette("scaled", 5), Palette("random"), Palette(cells=7)])
def test_every_palette_paints_as_many_as_its_capacity_and_refuses_one_more(palette) -> None:
    labels = torch.arange(palette.capacity + 1).repeat(3, 1)
    painted = encode_colormap(labels, palette, seeds=[0])
    assert len(set(colours_by_label(labels, painted).values())) == palette.capacity + 1
    labels = torch.arange(palette.capacity + 2).repeat(3, 1)
    told = f"at most {palette.capacity} entities, got {palette.capacity + 1}, in image 0"
    with pytest.raises(PaletteError, match=told):
        encode_colormap(labels, palette, seeds=[0])


def test_scaled_keeps_two_entities_of_one_place_and_size_apart() -> None:
    labels = draw_squares((20, 20, 20), (22, 22, 16))
    labels[25:35, 25:35] = 1  # a ring in a frame: one centre, areas of one class
    for collisions, colours in (("nearest", 2), ("paper", 1)):
        painted = encode_colormap(labels, Palette("scaled", 5), collisions=collisions)
        found = colours_by_label(labels, painted)
        assert len({found[1], found[2]}) == colours


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (torch.zeros(4), r"\[B, H, W\] or \[H, W\], got \[4\]"),
        (torch.zeros(1, 2, 4, 4, dtype=torch.long), r"got \[1, 2, 4, 4\]"),
        (torch.zeros(4, 4), "integer labels, got torch.float32"),
        (torch.full((4, 4), -1), ">= 0, got -1"),
    ],
)
def test_wrong_labels_are_named(labels: torch.Tensor, told: str) -> None:
    with pytest.raises(PaletteError, match=told):
        encode_colormap(labels)


def test_empty_inputs_are_painted_empty() -> None:
    assert encode_colormap(torch.zeros(0, 4, 5, dtype=torch.long)).shape == (0, 3, 4, 5)
    assert encode_colormap(torch.zeros(2, 0, 5, dtype=torch.long)).shape == (2, 3, 0, 5)
