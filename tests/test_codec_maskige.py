"""Laws of the maskige of GSS: palettes, painting, and the two inverses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unigs.codec import maskige
from unigs.codec.maskige import (
    ADE20K_LATTICE,
    GREY,
    GREY_RADIUS,
    MaskigeError,
    farthest_colours,
    lattice_colours,
    least_distance,
    paint_maskige,
    random_colours,
    read_maskige,
    solve_maskige,
)

COUNTS = (1, 2, 8, 19, 150)


@pytest.fixture(scope="module")
def farthest() -> dict[int, torch.Tensor]:
    return {count: farthest_colours(count) for count in COUNTS}


@st.composite
def palettes(draw: st.DrawFn) -> torch.Tensor:
    return random_colours(draw(st.integers(1, 40)), draw(st.integers(0, 2**31)))


def draw_classes(colours: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, len(colours), (2, 9, 11), generator=generator)


@settings(max_examples=40, deadline=None)
@given(palettes(), st.integers(0, 2**31))
def test_the_nearest_colour_gives_back_the_class(colours: torch.Tensor, seed: int) -> None:
    classes = draw_classes(colours, seed)
    painted = paint_maskige(classes, colours)
    assert painted.dtype == torch.uint8
    assert torch.equal(painted[0, :, 3, 4], colours[classes[0, 3, 4]])
    assert torch.equal(read_maskige(painted, colours), classes)
    assert torch.equal(read_maskige(painted.float(), colours), classes)


@settings(max_examples=40, deadline=None)
@given(palettes(), st.integers(0, 2**31))
def test_errors_below_half_the_least_distance_are_undone(colours: torch.Tensor, seed: int) -> None:
    classes = draw_classes(colours, seed)
    painted = paint_maskige(classes, colours).float()
    generator = torch.Generator().manual_seed(seed)
    error = torch.randn(painted.shape, generator=generator)
    reach = 0.499 * min(least_distance(colours), 500)
    error *= reach / error.norm(dim=1, keepdim=True)
    harmed = (painted + error).clamp(0, 255)  # the clamp brings it nearer to every colour
    assert torch.equal(read_maskige(harmed, colours), classes)


def test_errors_beyond_half_the_distance_go_to_the_other_class_and_a_tie_to_the_lower() -> None:
    colours = torch.tensor([[100, 0, 0], [0, 0, 0], [200, 0, 0]], dtype=torch.uint8)
    pixels = torch.tensor([49.0, 50.0, 51.0, 149.0, 150.0, 151.0]).view(1, 1, 1, 6)
    pixels = torch.cat((pixels, torch.zeros(1, 2, 1, 6)), 1)
    assert read_maskige(pixels, colours).flatten().tolist() == [1, 0, 0, 0, 0, 2]


def test_the_nearest_colour_is_that_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = random_colours(30, 3)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 8, 8), generator=generator).to(torch.uint8)
    monkeypatch.setattr(maskige, "CHUNK", 30 * 50)  # does not divide the 128 pixels
    found = read_maskige(pixels, colours)
    for b, y, x in np.ndindex(2, 8, 8):
        away = np.linalg.norm(colours.double() - pixels[b, :, y, x].double(), axis=1)
        assert found[b, y, x] == int(np.argmin(away))


@pytest.mark.parametrize("count", [2, 3, 4, 8, 19, 150])
def test_least_squares_are_their_closed_form(count: int) -> None:
    """The shortest c with c beta = x, by numpy's lstsq, and by its pinv."""
    colours = random_colours(count, 5)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (2, 3, 4, 5), generator=generator).to(torch.uint8)
    found = solve_maskige(pixels, colours).permute(0, 2, 3, 1).reshape(-1, count).numpy()
    x, beta = pixels.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy(), colours.double().numpy()
    assert np.allclose(found, np.linalg.lstsq(beta.T, x.T, rcond=None)[0].T, atol=1e-5)
    assert np.allclose(found, x @ np.linalg.pinv(beta), atol=1e-5)
    if count >= 3:
        assert np.allclose(found @ beta, x, atol=1e-2)


def test_least_squares_give_the_one_hot_classes_of_three_independent_colours() -> None:
    colours = torch.tensor([[250, 10, 0], [20, 240, 30], [0, 40, 200]], dtype=torch.uint8)
    classes = draw_classes(colours)
    scores = solve_maskige(paint_maskige(classes, colours), colours)
    wanted = torch.nn.functional.one_hot(classes, 3).permute(0, 3, 1, 2).float()
    assert torch.allclose(scores, wanted, atol=1e-5)


@pytest.mark.parametrize("count", [8, 19, 150])
def test_farthest_colours_are_farther_apart_than_the_papers(
    farthest: dict[int, torch.Tensor], count: int
) -> None:
    ours = least_distance(farthest[count])
    assert ours > max(least_distance(lattice_colours(count, seed)) for seed in range(5))
    # Also than the lattice without its jitter, of which no two are nearer than its least step.
    assert ours > {8: 225, 19: 225 / 2, 150: 40}[count]


@pytest.mark.parametrize("count", COUNTS)
def test_no_farthest_colour_is_greyish_and_every_call_gives_the_same(
    farthest: dict[int, torch.Tensor], count: int
) -> None:
    colours = farthest[count]
    assert colours.shape == (count, 3)
    assert colours.dtype == torch.uint8
    assert bool(((colours.double() - GREY).norm(dim=1) >= GREY_RADIUS).all())
    if count < 100:
        assert torch.equal(farthest_colours(count), colours)


def test_the_lattice_of_150_is_the_papers() -> None:
    colours = lattice_colours(150).long().view(5, 6, 5, 3)
    for channel, (start, step) in enumerate(ADE20K_LATTICE):
        levels = colours[..., channel].movedim(channel, 0).flatten(1)
        middle = start + step * torch.arange(len(levels))
        assert int((levels - middle[:, None]).abs().max()) == 15
    assert ADE20K_LATTICE == ((15, 51), (16, 40), (17, 45))  # as the paper's code has them


@pytest.mark.parametrize("make", [lattice_colours, random_colours])
def test_drawn_palettes_are_distinct_and_a_function_of_the_seed(make) -> None:
    for count in (1, 19, 150, 512):
        colours = make(count, 3)
        assert len(colours.unique(dim=0)) == count
        assert torch.equal(colours, make(count, 3))
        assert not torch.equal(colours, make(count, 4))


def test_random_colours_never_repeat() -> None:
    """Of 1000 palettes of 512, draws with repetition would give about eight with equal colours."""
    assert all(len(random_colours(512, seed).unique(dim=0)) == 512 for seed in range(1000))


def test_least_distance_is_that_of_the_nearest_pair() -> None:
    colours = torch.tensor([[0, 0, 0], [200, 0, 0], [203, 4, 0]], dtype=torch.uint8)
    assert least_distance(colours) == 5
    assert least_distance(colours[:1]) == float("inf")


def test_empty_maps_are_painted_and_read_empty() -> None:
    colours = random_colours(4, 0)
    painted = paint_maskige(torch.zeros(2, 0, 5, dtype=torch.long), colours)
    assert painted.shape == (2, 3, 0, 5)
    assert read_maskige(painted, colours).shape == (2, 0, 5)
    assert solve_maskige(painted.float(), colours).shape == (2, 4, 0, 5)


CLASSES, PIXELS, COLOURS = (
    torch.zeros(1, 2, 2).long(),
    torch.zeros(1, 3, 2, 2),
    random_colours(4, 0),
)
TWICE = COLOURS[[0, 1, 2, 1]]


@pytest.mark.parametrize(
    ("call", "given_", "told"),
    [
        (farthest_colours, (0,), r"1\.\.512 colours, got 0, in farthest_colours"),
        (lattice_colours, (513,), r"1\.\.512 colours, got 513, in lattice_colours"),
        (random_colours, (-1, 0), r"1\.\.512 colours, got -1, in random_colours"),
        (paint_maskige, (CLASSES + 4, COLOURS), r"in 0\.\.3, one per colour, got 4\.\.4"),
        (paint_maskige, (CLASSES - 1, COLOURS), r"in 0\.\.3, one per colour, got -1\.\.-1"),
        (paint_maskige, (CLASSES.float(), COLOURS), "classes of integers, got torch.float32"),
        (paint_maskige, (CLASSES[0], COLOURS), r"classes \[B, H, W\], got \[2, 2\]"),
        (paint_maskige, (CLASSES, TWICE), r"distinct colours, got .* classes 1 and 3, in paint_"),
        (read_maskige, (PIXELS, TWICE), r"distinct colours, got .* classes 1 and 3, in read_"),
        (solve_maskige, (PIXELS, TWICE), r"distinct colours, got .* classes 1 and 3, in solve_"),
        (read_maskige, (PIXELS, COLOURS.float()), "uint8 colours, got torch.float32"),
        (read_maskige, (PIXELS, COLOURS.t()), r"colours \[K, 3\], got \[3, 4\]"),
        (read_maskige, (PIXELS[:, :2], COLOURS), r"pixels \[B, 3, H, W\], got \[1, 2, 2, 2\]"),
        (read_maskige, (PIXELS.long(), COLOURS), "uint8 or float pixels, got torch.int64"),
        (read_maskige, (PIXELS - 1, COLOURS), r"pixels in 0\.\.255, got -1\.0\.\.-1\.0"),
        (solve_maskige, (PIXELS * torch.nan, COLOURS), r"pixels in 0\.\.255, got nan"),
    ],
)
def test_what_does_not_fit_is_named(call, given_: tuple, told: str) -> None:
    with pytest.raises(MaskigeError, match=told):
        call(*given_)
