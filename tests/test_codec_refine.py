"""Laws of the decoder with refinement: round trip, partition, invariances, robustness, scores."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from scipy import ndimage
from test_codec_paint import label_maps

from unigs.codec import (
    DecodeError,
    Decoder,
    Mode,
    Palette,
    decode_colormap,
    decode_dichotomy,
    decode_kmeans,
    decode_refined,
    encode_colormap,
)
from unigs.codec.corruption import measure_corruption
from unigs.codec.decode import score_entities
from unigs.codec.refine import _is_near, _locate, assign_borders, fill_holes, find_cores
from unigs.codec.regions import label_regions

DECODERS = get_args(Decoder)


def draw_cells(entities: int, seed: int, size: int = 128) -> torch.Tensor:
    """A full cover of Voronoi cells, int64 [size, size], 1..entities."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(entities, 2, generator=generator) * size
    grid = torch.cartesian_prod(torch.arange(size), torch.arange(size)) + 0.5
    return torch.cdist(grid, points).argmin(1).view(size, size) + 1


def blur(picture: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of float [3, H, W]."""
    reach = int(3 * sigma) + 1
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (taps[:, None] * taps / taps.sum() ** 2)[None, None]
    return F.conv2d(F.pad(picture[:, None], (reach,) * 4, mode="reflect"), kernel)[:, 0]


def corrupt(colormap: torch.Tensor, sigma: float, noise: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    picture = blur(colormap.float(), sigma) if sigma else colormap.float()
    picture = picture + noise * torch.randn(picture.shape, generator=generator)
    return picture.clamp(0, 255).round().byte()


def best_ious(truth: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    truth, found = truth.long(), found.long()
    pairs = F.one_hot(truth.view(-1)).t().double() @ F.one_hot(found.view(-1)).double()
    union = pairs.sum(1, keepdim=True) + pairs.sum(0) - pairs
    return (pairs / union)[1:, 1:].amax(1)[pairs.sum(1)[1:] > 0]


def same_entities(one: torch.Tensor, other: torch.Tensor) -> bool:
    pairs = torch.stack((one.reshape(-1).long(), other.reshape(-1).long())).unique(dim=1).shape[1]
    return pairs == len(one.unique()) == len(other.unique())


@settings(max_examples=80, deadline=None)
@given(label_maps())
def test_round_trip_of_clean_maps(labels: torch.Tensor) -> None:
    found = decode_colormap(encode_colormap(labels), mode="foreground")
    assert same_entities(found.labels[0], labels)
    assert torch.equal(found.labels[0] == 0, labels == 0)
    assert len(found.scores[0]) == len(labels[labels > 0].unique())


@settings(max_examples=40, deadline=None)
@given(label_maps())
def test_entity_mode_is_a_full_partition(labels: torch.Tensor) -> None:
    for decoder in DECODERS:
        found = decode_colormap(encode_colormap(labels), decoder=decoder).labels[0]
        assert found.unique().tolist() == list(range(1, int(found.max()) + 1))
    if int(labels.min()) > 0:
        assert same_entities(decode_colormap(encode_colormap(labels)).labels[0], labels)


@pytest.mark.parametrize(
    "palette",
    [Palette(cells=7), Palette(), Palette("gradient", 5), Palette("scaled", 5), Palette("random")],
)
def test_round_trip_with_every_palette(palette: Palette) -> None:
    labels = draw_cells(10, seed=1)
    colormap = encode_colormap(labels, palette, seeds=[5])
    for sigma, noise in ((0, 0), (1.0, 4)):
        found = decode_colormap(corrupt(colormap, sigma, noise), palette)
        assert best_ious(labels, found.labels[0]).mean() > 0.95
        assert int(found.labels.max()) == 10


@pytest.mark.parametrize("entities", [60, 100])
def test_scaled_paints_and_decodes_as_many_entities_as_it_has_colours(entities: int) -> None:
    palette, labels = Palette("scaled", 5), draw_cells(entities, seed=entities)
    found = decode_colormap(encode_colormap(labels, palette), palette).labels[0]
    assert same_entities(found, labels)


@pytest.mark.parametrize(("blue", "entities"), [(255, 2), (64, 1)])
def test_a_speck_in_the_colour_of_a_large_entity_is_none(blue: int, entities: int) -> None:
    picture = torch.full((3, 100, 100), 64.0)
    picture[:2] = 192  # of a large entity, a cell away
    picture[:, 46:54, 46:54] = torch.tensor([128.0, 128.0, blue])[:, None, None]
    colormap = corrupt(picture.byte(), 1.0, 8)
    found = decode_colormap(colormap, Palette("scaled", 5)).labels[0]
    assert int(found.max()) == entities


@pytest.mark.parametrize("side", [1, 2, 4])
def test_a_square_of_some_cells_is_as_large_as_its_side(side: int) -> None:
    """Of a picture of 50 x 200 pixels and 5 x 5 cells, with its centre at row 2 and column 3."""
    area = (20.0 * side) ** 2
    sums = torch.tensor([[20 * area, 120 * area, area]], dtype=torch.double)
    place = _locate(sums, 5, (50, 200))
    assert place.tolist() == [[2, 3, side]]
    homes = torch.tensor([[2.5, 3.5, side + 1.4], [2.5, 3.5, side + 1.6]], dtype=torch.double)
    assert _is_near(place, homes).tolist() == [[True, False]]
    assert _is_near(place, homes[:, :2]).tolist() == [[True, True]]  # of sizes they tell nothing


@pytest.mark.parametrize(("sigma", "noise", "least"), [(1.5, 4, 0.97), (2.5, 8, 0.93)])
def test_blurred_and_noisy_maps_keep_their_entities(
    sigma: float, noise: float, least: float
) -> None:
    for seed in range(3):
        labels = draw_cells(8, seed)
        found = decode_colormap(corrupt(encode_colormap(labels), sigma, noise, seed))
        assert int(found.labels.max()) == 8
        assert best_ious(labels, found.labels[0]).mean() > least


def test_touching_entities_of_neighbouring_legal_colours_stay_apart() -> None:
    picture = torch.full((3, 96, 96), 128.0)
    picture[0, :, 48:] = 192.0  # one step of one channel
    found = decode_colormap(corrupt(picture.byte(), 2.5, 6), None).labels[0]
    assert int(found.max()) == 2
    truth = (picture[0] > 150).long() + 1
    assert best_ious(truth, found).min() > 0.98


def test_a_colour_that_drifts_over_the_limit_of_two_legal_ones_is_one_entity() -> None:
    ramp = torch.linspace(100, 150, 128)  # 128 is legal up to 159, 64 up to 95
    picture = torch.stack(
        (ramp.repeat(128, 1) + 30, ramp.repeat(128, 1), torch.full((128, 128), 64.0))
    )
    picture[:, :40] = torch.tensor([255.0, 0.0, 255.0])[:, None, None]
    found = decode_colormap(corrupt(picture.byte(), 1.5, 4), None).labels[0]
    assert int(found.max()) == 2


def test_a_blend_is_no_core_but_a_thin_entity_is() -> None:
    picture = torch.zeros(3, 40, 80)
    picture[0, :, 30:] = 255  # black | red, whose blend is the legal (128, 0, 0)
    picture[1, 18:22, 40:70] = 255  # a bar four pixels thin
    colormap = corrupt(picture.byte(), 1.5, 0)[None]
    raw = colormap.float() * 8
    state = measure_corruption(raw)
    assert not bool(state.sharp)
    core, _ = find_cores(raw, state)
    assert not core[0, 4:14, 29:31].any()
    assert core[0, 19:21, 45:65].any(0).all()
    assert core[0, :, :24].all()


def test_small_blurred_maps_keep_entities_of_a_few_pixels() -> None:
    for seed in range(3):
        labels = draw_cells(12, seed, size=48)
        found = decode_colormap(corrupt(encode_colormap(labels), 0.9, 1, seed))
        assert best_ious(labels, found.labels[0]).mean() > 0.9
    bar = torch.zeros(64, 64, dtype=torch.long)
    bar[30:33, 20:36] = 1  # three pixels thin, on black
    found = decode_colormap(corrupt(encode_colormap(bar), 1.0, 1), mode="foreground").labels[0]
    assert best_ious(bar, found).min() > 0.75


def test_a_black_hole_in_an_entity_is_filled_and_a_black_neighbour_is_not() -> None:
    labels = draw_cells(4, seed=3)
    colormap = encode_colormap(labels)
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    centre = (labels == 1).nonzero().double().mean(0)
    hole = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 81
    holed = colormap * ~hole
    for sigma, noise in ((0, 0), (1.5, 4)):
        found = decode_colormap(corrupt(holed, sigma, noise)).labels[0]
        assert int(found.max()) == 4
        assert best_ious(labels, found).min() > 0.95
    kept = decode_colormap(holed, mode="foreground").labels[0]
    assert torch.equal(kept == 0, hole)
    bordered = colormap * ~((y < 30) & (x < 30))
    assert int(decode_colormap(bordered).labels.max()) == 5


def test_holes_only_go_to_the_one_entity_around_them() -> None:
    colour = torch.tensor([7, 0, 9])
    entity = torch.zeros(1, 9, 9, dtype=torch.long)
    entity[0, 3:5, 3:5] = 1
    assert not (fill_holes(entity, colour) == 1).any()
    entity[0, :, 5:] = 2
    assert torch.equal(fill_holes(entity, colour), entity)


def test_regions_equal_a_flood_fill() -> None:
    generator = torch.Generator().manual_seed(0)
    key = torch.randint(-1, 2, (3, 17, 23), generator=generator)
    found = label_regions(key)
    assert torch.equal(found < 0, key < 0)
    seen = torch.full_like(key, -1)
    number = 0
    for start in (key >= 0).nonzero().tolist():
        if seen[tuple(start)] >= 0:
            continue
        stack = [tuple(start)]
        while stack:
            image, y, x = stack.pop()
            seen[image, y, x] = number
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= v < 17 and 0 <= u < 23
                if inside and seen[image, v, u] < 0 and key[image, v, u] == key[image, y, x]:
                    stack.append((image, v, u))
        number += 1
    assert torch.equal(found, seen)


def test_borders_are_filled_far_from_any_core_and_never_across_images() -> None:
    region = torch.full((2, 60, 60), -1)
    region[0, 0, 0], region[1, 59, 59] = 0, 1
    filled = assign_borders(region, torch.zeros(2, 3, 60, 60))
    assert (filled[0] == 0).all()
    assert (filled[1] == 1).all()


def test_result_depends_on_nothing_else_in_the_batch() -> None:
    kinds = [(0, 0), (0, 6), (1.5, 4), (3, 12)]
    maps = [
        corrupt(encode_colormap(draw_cells(9, i, 96)), *kind, i) for i, kind in enumerate(kinds)
    ]
    order = [3, 1, 0, 2]
    together = decode_colormap(torch.stack([maps[i] for i in order]))
    for row, i in enumerate(order):
        alone = decode_colormap(maps[i])
        assert torch.equal(together.labels[row], alone.labels[0])
        assert together.scores[row] == alone.scores[0]


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_score_is_what_an_erosion_by_one_pixel_leaves(decoder: Decoder) -> None:
    maps = [corrupt(encode_colormap(draw_cells(6, seed=seed)), 1.5, 4) for seed in (2, 3)]
    found = decode_colormap(torch.stack(maps), decoder=decoder)
    for labels, scores in zip(found.labels.numpy(), found.scores):
        for number, score in enumerate(scores, 1):
            mask = labels == number
            assert score == ndimage.binary_erosion(mask, border_value=1).sum() / mask.sum()


def test_no_score_but_area_where_there_is_nothing_inside() -> None:
    lines = torch.arange(1, 4)[:, None].repeat(1, 3)
    scores, area = score_entities(lines[None], 5)
    assert scores.tolist() == [0.0] * 5
    assert area.tolist() == [0, 3, 3, 3, 0]


def test_labels_are_ordered_by_area() -> None:
    found = decode_colormap(encode_colormap(draw_cells(10, seed=4))).labels[0]
    areas = torch.bincount(found.view(-1))[1:]
    assert (areas[:-1] >= areas[1:]).all()


def test_float_equals_uint8_and_autocast_changes_nothing() -> None:
    colormap = corrupt(encode_colormap(draw_cells(6, seed=5)), 1.5, 4)
    for decoder in DECODERS:
        plain = decode_colormap(colormap, decoder=decoder)
        others = [decode_colormap(colormap.float() / 255, decoder=decoder)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            others.append(decode_colormap(colormap, decoder=decoder))
        for other in others:
            assert torch.equal(plain.labels, other.labels)
            assert plain.scores == other.scores


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (5, 31)])
def test_small_and_narrow_pictures(shape: tuple[int, int], decoder: Decoder) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, 3, *shape), generator=generator).byte()
    found = decode_colormap(noise, decoder=decoder)
    assert found.labels.shape == (2, *shape)
    assert found.labels.dtype == torch.int32
    assert int(found.labels.min()) == 1
    assert [len(scores) for scores in found.scores] == found.labels.amax((1, 2)).tolist()


@pytest.mark.parametrize("decoder", DECODERS)
def test_single_colours_and_empty_batches(decoder: Decoder) -> None:
    black = torch.zeros(1, 3, 6, 8, dtype=torch.uint8)
    assert decode_colormap(black, decoder=decoder, mode="foreground").scores == [[]]
    assert (decode_colormap(black, decoder=decoder).labels == 1).all()
    assert decode_colormap(black[:0], decoder=decoder).labels.shape == (0, 6, 8)
    nothing = decode_colormap(black[..., :0], decoder=decoder)
    assert (nothing.labels.shape, nothing.scores) == ((1, 6, 0), [[]])


@pytest.mark.parametrize(
    ("colormap", "told"),
    [
        (torch.zeros(4, 4), r"\[3, H, W\], got \[4, 4\]"),
        (torch.zeros(1, 4, 4, 4), r"got \[1, 4, 4, 4\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "uint8 or float, got torch.int64"),
        (torch.full((3, 4, 4), 255.0), "floats in 0..1, got 255.0..255.0"),
        (torch.full((3, 4, 4), torch.nan), "floats in 0..1, got nan..nan"),
    ],
)
def test_wrong_colormaps_are_named(colormap: torch.Tensor, told: str) -> None:
    with pytest.raises(DecodeError, match=told):
        decode_colormap(colormap)


@pytest.mark.parametrize(
    ("decode", "options"),
    [
        (decode_colormap, {"decoder": "spatial"}),
        (decode_colormap, {"mode": "panoptic"}),
        (decode_refined, {"mode": "panoptic"}),
        (decode_dichotomy, {"mode": "panoptic"}),
        (decode_dichotomy, {"delta": 0}),
        (decode_dichotomy, {"delta": float("nan")}),
        (decode_dichotomy, {"features": "hsv"}),
        (decode_kmeans, {"clusters": 3, "mode": "panoptic"}),
        (decode_kmeans, {"clusters": 3, "features": "hsv"}),
        (decode_kmeans, {"clusters": [3, 3]}),
        (decode_kmeans, {"clusters": 0}),
    ],
)
def test_wrong_options_are_named(decode, options: dict) -> None:
    with pytest.raises(DecodeError, match=r"expected .* got .* in (a colormap's decoder|decode_)"):
        decode(torch.zeros(3, 4, 4, dtype=torch.uint8), **options)


def test_the_decoder_by_name_is_that_decoder() -> None:
    picture = torch.full((3, 100, 100), 64.0)
    picture[:2] = 192
    picture[2, 46:54, 46:54] = 255  # an entity of its own only if sizes are known
    picture[:, :30] = 0
    colormap, seen = corrupt(picture.byte(), 1.0, 8), []
    for palette in (Palette("scaled", 5), Palette()):
        for mode in get_args(Mode):
            found = decode_colormap(colormap, palette, mode=mode)
            alone = decode_refined(colormap, palette, mode)
            assert torch.equal(found.labels, alone.labels)
            assert found.scores == alone.scores
            seen.append(found.scores)
    for mode in get_args(Mode):
        found = decode_colormap(colormap, mode=mode, decoder="dichotomy")
        assert torch.equal(found.labels, decode_dichotomy(colormap, mode).labels)
        seen.append(found.scores)
    assert all(one not in seen[:place] for place, one in enumerate(seen))
