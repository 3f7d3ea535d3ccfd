"""Laws of palettes: what each kind allows, how many entities it has room for, where they belong."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
import torch
from jsonargparse import ArgumentParser

from unigs.codec import Palette, PaletteError
from unigs.codec.colours import colour_features
from unigs.codec.palette import SIZES, Kind, legal_colours, nearest_legal


@pytest.mark.parametrize(
    ("kind", "cells", "capacity"),
    [
        ("location", 11, 121), ("location", 7, 49), ("location", 1, 1), ("gradient", 5, 25),
        ("gradient", 2, 4), ("scaled", 5, 100), ("scaled", 1, 4), ("random", 11, 124),
        ("random", 3, 124),
    ],
)  # fmt: skip
def test_a_palette_has_room_for_its_colours_and_none_is_black(kind, cells, capacity) -> None:
    palette = Palette(kind, cells)
    assert palette.capacity == capacity
    colours, homes = palette.colours(), palette.homes()
    assert len(colours) == len(colours.unique()) == capacity
    assert 1 <= int(colours.min()) <= int(colours.max()) <= 124
    assert homes is None if kind == "random" else len(homes) == capacity


@pytest.mark.parametrize(
    ("kind", "cells", "told"),
    [
        ("spiral", 5, r"expected kind in \('location', .*\), got 'spiral', in Palette"),
        ("location", 0, r"expected 1\.\.11 cells per side, got 0, in the location palette"),
        ("location", 12, r"1\.\.11 cells .* got 12"),
        ("random", 12, r"1\.\.11 cells .* got 12"),
        ("gradient", 6, r"1\.\.5 cells per side, got 6, in the gradient palette"),
        ("scaled", 6, r"1\.\.5 cells per side, got 6, in the scaled palette"),
        ("location", 7.0, r"got 7\.0"),
        ("location", True, "got True"),
    ],
)
def test_palettes_that_do_not_exist_are_named(kind, cells, told) -> None:
    with pytest.raises(PaletteError, match=told):
        Palette(kind, cells)


def test_a_palette_is_a_value() -> None:
    assert Palette() == Palette("location", 11)
    assert len({Palette(kind, 5) for kind in get_args(Kind) for _ in range(2)}) == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        Palette().cells = 3  # type: ignore[misc]


def test_the_command_line_sets_one_field_of_a_default() -> None:
    def paint(palette: Palette = Palette(cells=5)) -> None: ...

    parser = ArgumentParser()
    parser.add_function_arguments(paint)
    palette = parser.parse_args(["--palette.kind=scaled"]).palette
    assert Palette(**palette.as_dict()) == Palette("scaled", 5)


def test_the_nearest_legal_colour_is_the_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    rgb = torch.randint(0, 256, (500, 3), generator=generator).float()
    apart = (rgb[:, None] - legal_colours().float()).abs()
    chosen = apart[torch.arange(500), nearest_legal(rgb.t()[None])[0]]
    # 255 is one nearer to 192 than steps are wide: a channel half way may go up.
    assert (chosen - apart.amin(1) <= 1).all()
    assert torch.equal(nearest_legal(legal_colours().t()[None].float()), torch.arange(125)[None])


def test_a_gradient_follows_the_place_and_tells_every_cell_apart() -> None:
    """Moving an entity to the right adds red, moving it down adds green, nothing else changes."""
    for cells in range(1, 6):
        numbers = Palette("gradient", cells).colours().view(cells, cells)
        assert len(numbers.unique()) == cells**2
        rgb = legal_colours()[numbers].int()  # [cells, cells, 3]
        assert (rgb.diff(dim=1)[..., 0] > 0).all()
        assert (rgb.diff(dim=1)[..., 1:] == 0).all()
        assert torch.equal(rgb[..., 1], rgb[..., 0].t())
        assert (rgb[..., 2] == 128).all()


def test_scaled_numbers_are_distinct_and_have_homes_in_order() -> None:
    for cells in range(1, 6):
        numbers = Palette("scaled", cells).colours()
        homes = Palette("scaled", cells).homes()
        assert len(numbers.unique()) == len(numbers) == SIZES * cells**2
        assert homes is not None
        assert len(homes) == len(numbers)
        assert (numbers > 0).all()
        rgb = legal_colours()[numbers].double()
        for channel, axis, sign in ((0, 1, 1), (1, 0, 1), (2, 2, -1)):  # red by column, ...
            order = homes[:, axis].argsort(stable=True)
            assert (sign * rgb[order, channel].diff() >= 0).all()


def test_neighbouring_cells_are_far_apart_in_lab_and_black_far_from_all() -> None:
    lab = colour_features(legal_colours(), "lab").t()
    grid = Palette().colours().view(11, 11)
    lexical = torch.arange(1, 122).view(11, 11)

    def least(table: torch.Tensor) -> float:
        pairs = [(table[:-1], table[1:]), (table[:, :-1], table[:, 1:])]
        pairs += [(table[:-1, :-1], table[1:, 1:]), (table[:-1, 1:], table[1:, :-1])]
        return min(float((lab[a] - lab[b]).norm(dim=-1).min()) for a, b in pairs)

    assert least(grid) > 4 * least(lexical)
    assert len(grid.unique()) == 121
    left_out = set(range(1, 125)) - set(grid.view(-1).tolist())
    darkest = legal_colours().double().norm(dim=1)[1:].argsort()[:3] + 1
    assert left_out == set(darkest.tolist())
