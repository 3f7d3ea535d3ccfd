"""Laws of the analog bits of Pix2Seq-D and of its instance ids."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unigs.codec.analog_bits import (
    BitCode,
    BitsError,
    decode_bits,
    encode_bits,
    expected_bits,
    split_logits,
)
from unigs.codec.panoptic_ids import decode_panoptic, draw_ids, instance_weights
from unigs.records import Skips

KINDS = ("random", "shuffle", "place")


@st.composite
def codes(draw: st.DrawFn) -> BitCode:
    scale = draw(st.sampled_from([1e-3, 0.03, 0.1, 0.3, 1.0, 10.0]))
    return BitCode(draw(st.integers(1, 16)), draw(st.integers(1, 16)), scale)


@st.composite
def label_maps(draw: st.DrawFn, most: int = 12) -> torch.Tensor:
    """Blocky int64 [B, H, W] with gaps in the numbering; 0 included."""
    b, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(1, 20))
    block = draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    coarse = (b, -(-height // block), -(-width // block))
    labels = torch.randint(0, draw(st.integers(1, most)) + 1, coarse, generator=generator)
    labels = labels.repeat_interleave(block, 1).repeat_interleave(block, 2)
    return labels[:, :height, :width].contiguous()


def draw_maps(code: BitCode, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tops = (code.most_class + 1, code.most_id + 1)
    classes, ids = (torch.randint(0, top, (2, 7, 9), generator=generator) for top in tops)
    return classes, ids


def test_every_pair_of_a_small_code_comes_back() -> None:
    code = BitCode(4, 5, 0.1)
    pairs = torch.cartesian_prod(torch.arange(16), torch.arange(32)).t().view(2, 1, 16, 32)
    found = decode_bits(encode_bits(*pairs, code), code)
    assert torch.equal(torch.stack(found), pairs)


@settings(max_examples=60, deadline=None)
@given(codes(), st.integers(0, 2**31))
def test_any_error_below_the_scale_leaves_the_maps_as_they_are(code: BitCode, seed: int) -> None:
    maps = draw_maps(code, seed)
    bits = encode_bits(*maps, code)
    assert bits.dtype == torch.float32
    assert torch.equal(bits.abs(), torch.full_like(bits, code.scale))
    generator = torch.Generator().manual_seed(seed)
    error = (2 * torch.rand(bits.shape, generator=generator) - 1) * 0.999 * code.scale
    for harmed in (bits, bits + error):
        classes, ids = decode_bits(harmed, code)
        assert torch.equal(classes, maps[0])
        assert torch.equal(ids, maps[1])
    assert not torch.equal(decode_bits(-bits, code)[0], maps[0])  # more than the scale is too much


def test_class_bits_come_first_and_the_least_significant_first() -> None:
    """Class 6 = 110b, id 1 = 01b."""
    bits = encode_bits(torch.tensor([[[6]]]), torch.tensor([[[1]]]), BitCode(3, 2, 0.5))
    assert bits[0, :, 0, 0].tolist() == [-0.5, 0.5, 0.5, 0.5, -0.5]


def test_integers_that_are_not_in_use_are_clipped() -> None:
    code = BitCode(4, 4)
    maps = torch.tensor([[[15, 3, 0]]]), torch.tensor([[[2, 14, 15]]])
    classes, ids = decode_bits(encode_bits(*maps, code), code, most_class=9, most_id=13)
    assert classes.flatten().tolist() == [9, 3, 0]
    assert ids.flatten().tolist() == [2, 13, 13]


@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0])
def test_certain_logits_give_the_bits_exactly(scale: float) -> None:
    code = BitCode(5, 3, scale)
    classes, ids = draw_maps(code)
    hot = [torch.nn.functional.one_hot(m, n) for m, n in ((classes, 32), (ids, 8))]
    logits = torch.cat(hot, -1).permute(0, 3, 1, 2) * 1000.0
    assert torch.equal(expected_bits(logits, code), encode_bits(classes, ids, code))
    one, two = split_logits(logits, code)
    assert torch.equal(one.argmax(1), classes)
    assert torch.equal(two.argmax(1), ids)


def test_expected_bits_are_the_mean_over_the_integers() -> None:
    code = BitCode(3, 2, 0.1)
    logits = torch.randn(2, code.logit_channels, 4, 5, generator=torch.Generator().manual_seed(0))
    wanted = torch.zeros(2, code.channels, 4, 5, dtype=torch.double)
    groups = ((logits[:, :8], range(8), 0, 3), (logits[:, 8:], range(4), 3, 2))
    for part, integers, first, bits in groups:
        share = part.double().exp() / part.double().exp().sum(1, keepdim=True)
        for integer, bit in itertools.product(integers, range(bits)):
            wanted[:, first + bit] += share[:, integer] * (0.1 if integer >> bit & 1 else -0.1)
    assert torch.allclose(expected_bits(logits, code).double(), wanted, atol=1e-7)


def test_expected_bits_stay_within_the_scale_and_teach() -> None:
    code = BitCode(8, 8)
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(1, code.logit_channels, 8, 8, generator=generator) * 30).requires_grad_()
    bits = expected_bits(logits, code)
    assert bool((bits.detach().abs() <= code.scale).all())
    bits.sum().backward()
    assert bool((logits.grad != 0).any())


@settings(max_examples=40, deadline=None)
@given(label_maps(), st.sampled_from(KINDS), st.integers(0, 2**31))
def test_ids_name_the_same_entities(labels: torch.Tensor, kind: str, seed: int) -> None:
    """Two pixels of a picture share an id if and only if they share a label; 0 stays 0."""
    ids = draw_ids(labels, BitCode(), seed, list(range(len(labels))), kind)
    for picture, numbers in zip(labels, ids):
        pairs = torch.stack((picture, numbers)).flatten(1).unique(dim=1)
        assert len(pairs[0].unique()) == len(pairs[1].unique()) == pairs.shape[1]
        assert torch.equal(picture == 0, numbers == 0)
        if kind != "random":  # without gaps
            present = numbers[numbers > 0].unique()
            assert torch.equal(present, torch.arange(1, len(present) + 1))


@pytest.mark.parametrize("kind", ["random", "shuffle"])
def test_drawn_ids_are_a_function_of_seed_and_index(kind: str) -> None:
    labels = torch.arange(1, 31).view(1, 5, 6).repeat(3, 1, 1)
    ids = draw_ids(labels, BitCode(), 7, [4, 5, 4], kind)
    assert torch.equal(ids[0], ids[2])
    assert not torch.equal(ids[0], ids[1])
    assert torch.equal(ids[1:2], draw_ids(labels[:1], BitCode(), 7, [5], kind))
    assert not torch.equal(ids[:1], draw_ids(labels[:1], BitCode(), 8, [4], kind))


def test_random_ids_use_the_whole_range_and_no_more() -> None:
    labels = torch.arange(1, 11).view(1, 2, 5).repeat(200, 1, 1)
    ids = draw_ids(labels, BitCode(), 0, range(200), "random", most=20)
    assert torch.equal(ids.unique(), torch.arange(1, 21))
    assert int(draw_ids(labels, BitCode(), 0, range(200), "random").max()) == 255


def test_ids_by_place_follow_the_centres_from_the_top_left() -> None:
    labels = torch.tensor([[[5, 5, 2, 2], [9, 0, 7, 7], [9, 9, 7, 7]]])
    wanted = torch.tensor([[[1, 1, 2, 2], [4, 0, 3, 3], [4, 4, 3, 3]]])
    assert torch.equal(draw_ids(labels, BitCode(), 0, [0], "place"), wanted)


@settings(max_examples=40, deadline=None)
@given(label_maps(), st.integers(0, 2**31))
def test_ids_by_place_do_not_depend_on_the_numbers_of_labels(
    labels: torch.Tensor, seed: int
) -> None:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed)) + 1
    renamed = torch.cat((torch.zeros(1, dtype=torch.long), order))[labels]
    indices = list(range(len(labels)))
    found = [draw_ids(m, BitCode(), 0, indices, "place") for m in (labels, renamed)]
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_entities_are_refused_or_the_smallest_left_out_and_counted(kind: str) -> None:
    labels = torch.tensor([[[3, 3, 3, 1], [8, 8, 1, 1], [4, 4, 4, 4], [2, 8, 8, 6]]])
    code = BitCode(id_bits=2)  # three ids; 2 and 6 have one pixel, the others three or four
    with pytest.raises(BitsError, match="at most 3 entities, got 6, in the picture of index 11"):
        draw_ids(labels, code, 0, [11], kind)
    skips = Skips()
    ids = draw_ids(labels, code, 0, [11], kind, overflow="drop", skips=skips)
    assert skips.total == 3
    left = labels[ids > 0].unique().tolist()
    assert left == [3, 4, 8]  # 3 and 1 are equally large, and 3 comes first
    assert sorted(ids.unique().tolist()) == [0, 1, 2, 3]


@settings(max_examples=30, deadline=None)
@given(label_maps(), st.sampled_from([0.0, 0.2, 0.6, 1.0]))
def test_weights_are_the_formula_and_have_mean_one(ids: torch.Tensor, power: float) -> None:
    found = instance_weights(ids, power)
    for picture, weights in zip(ids.numpy(), found):
        wanted = np.empty(picture.shape)
        for y, x in np.ndindex(*picture.shape):
            wanted[y, x] = (1 / (np.sum(picture == picture[y, x]) + 1)) ** power
        wanted /= wanted.mean()
        assert np.allclose(weights.numpy(), wanted, rtol=1e-6, atol=0)


@settings(max_examples=40, deadline=None)
@given(label_maps(), st.sampled_from(KINDS), st.integers(0, 2**31))
def test_entities_survive_the_whole_way_there_and_back(
    labels: torch.Tensor, kind: str, seed: int
) -> None:
    """Labels -> ids -> bits -> ids -> labels: the same partition with the classes it had."""
    code = BitCode(5, 4)
    table = torch.randint(1, 32, (13,), generator=torch.Generator().manual_seed(seed))
    table[0] = 0
    ids = draw_ids(labels, code, seed, list(range(len(labels))), kind)
    found = decode_panoptic(*decode_bits(encode_bits(table[labels], ids, code), code), 1)
    for picture, (masks, classes) in zip(labels, found):
        assert masks.dtype == torch.int32
        assert torch.equal(masks == 0, picture == 0)
        for k, wanted in enumerate(classes, 1):
            (label,) = picture[masks == k].unique().tolist()
            assert torch.equal(masks == k, picture == label)
            assert wanted == table[label]


@settings(max_examples=40, deadline=None)
@given(label_maps(), st.integers(0, 2**31))
def test_renaming_ids_changes_nothing_that_is_decoded(ids: torch.Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 4, ids.shape, generator=generator)
    order = torch.randperm(40, generator=generator) + 1
    renamed = torch.cat((torch.zeros(1, dtype=torch.long), order))[ids]
    for one, two in zip(decode_panoptic(classes, ids, 2), decode_panoptic(classes, renamed, 2)):
        assert torch.equal(one.labels, two.labels)
        assert one.classes == two.classes


def test_an_id_has_the_class_of_most_of_its_pixels_and_enough_of_them() -> None:
    ids = torch.tensor([[[1, 1, 1, 2, 2], [1, 1, 2, 2, 2], [3, 3, 4, 4, 0], [3, 3, 4, 4, 0]]])
    classes = torch.tensor([[[2, 2, 7, 7, 7], [7, 7, 0, 0, 0], [6, 6, 9, 9, 5], [6, 9, 6, 6, 5]]])
    (found,) = decode_panoptic(classes, ids, least_px=2)
    # 1 is 7 by three to two; 2 is mostly void; 4 ties and is the lower; 0 is none.
    wanted = [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [2, 2, 3, 3, 0], [2, 2, 3, 3, 0]]
    assert found.labels.tolist() == wanted
    assert found.classes == [7, 6, 6]


@pytest.mark.parametrize(("pixels", "entities"), [(40, 1), (39, 0)])
def test_an_id_of_fewer_than_forty_pixels_is_void(pixels: int, entities: int) -> None:
    ids = torch.zeros(1, 8, 8, dtype=torch.long)
    ids.view(-1)[:pixels] = 3
    (found,) = decode_panoptic(ids, ids)
    assert len(found.classes) == int(found.labels.max()) == entities


def test_empty_maps_have_no_entities() -> None:
    empty = torch.zeros(2, 0, 5, dtype=torch.long)
    assert encode_bits(empty, empty, BitCode()).shape == (2, 16, 0, 5)
    assert decode_bits(torch.zeros(2, 16, 0, 5), BitCode())[1].shape == (2, 0, 5)
    assert draw_ids(empty, BitCode(), 0, [0, 1]).shape == instance_weights(empty, 0.2).shape
    assert [found.classes for found in decode_panoptic(empty, empty)] == [[], []]


MAP = torch.zeros(1, 2, 3, dtype=torch.long)
REFUSED = {
    "BitCode": lambda **options: BitCode(**options),
    "encode_bits": lambda c=MAP, i=MAP: encode_bits(c, i, BitCode(3, 4)),
    "decode_bits": lambda bits: decode_bits(bits, BitCode(3, 4)),
    "split_logits": lambda logits: expected_bits(logits, BitCode(3, 4)),
    "draw_ids": lambda labels=MAP, indices=(0,), kind="random", **options: draw_ids(
        labels, BitCode(3, 4), 0, indices, kind, **options
    ),
    "instance_weights": lambda ids=MAP, power=0.2: instance_weights(ids, power),
    "decode_panoptic": lambda c=MAP, i=MAP, px=1: decode_panoptic(c, i, px),
}


@pytest.mark.parametrize(
    ("where", "given_", "told"),
    [
        ("BitCode", {"class_bits": 0}, r"class_bits in 1\.\.16, got 0"),
        ("BitCode", {"id_bits": 17}, r"id_bits in 1\.\.16, got 17"),
        ("BitCode", {"scale": 0.0}, r"scale > 0, got 0\.0"),
        ("BitCode", {"scale": float("nan")}, "scale > 0, got nan"),
        ("encode_bits", {"c": MAP + 8}, r"classes of at most 7 .*got 8"),
        ("encode_bits", {"i": MAP + 16}, r"ids of at most 15 .*got 16"),
        ("encode_bits", {"c": MAP - 1}, "classes >= 0, got -1"),
        ("encode_bits", {"c": MAP.float()}, "classes of integers, got torch.float32"),
        ("encode_bits", {"i": MAP[0]}, r"ids \[B, H, W\], got \[2, 3\]"),
        ("encode_bits", {"i": MAP[:, :1]}, r"\[1, 2, 3\], got \[1, 1, 3\]"),
        ("decode_bits", {"bits": torch.zeros(1, 8, 2, 2)}, r"\[B, 7, H, W\], got \[1, 8, 2, 2\]"),
        ("decode_bits", {"bits": torch.zeros(1, 7, 2, 2).long()}, "float bits, got torch.int64"),
        ("split_logits", {"logits": torch.zeros(1, 7, 2, 2)}, r"\[B, 24, H, W\], got \[1, 7, 2"),
        ("draw_ids", {"labels": MAP.float()}, "labels of integers, got torch.float32"),
        ("draw_ids", {"labels": MAP - 2}, "labels >= 0, got -2"),
        ("draw_ids", {"indices": (0, 1)}, "1 indices, one per picture, got 2"),
        ("draw_ids", {"kind": "raster"}, "kind of .*got 'raster'"),
        ("draw_ids", {"overflow": "ignore"}, "overflow of .*got 'ignore'"),
        ("draw_ids", {"most": 16}, r"most in 1\.\.15, got 16"),
        ("instance_weights", {"power": -1.0}, r"power >= 0, got -1\.0"),
        ("instance_weights", {"ids": MAP.bool()}, "ids of integers, got torch.bool"),
        ("decode_panoptic", {"i": MAP.float()}, "ids of integers, got torch.float32"),
        ("decode_panoptic", {"i": MAP[:, :1]}, r"\[1, 2, 3\], got \[1, 1, 3\]"),
        ("decode_panoptic", {"px": 0}, "least_px >= 1, got 0"),
    ],
)
def test_what_does_not_fit_is_named(where: str, given_: dict, told: str) -> None:
    with pytest.raises(BitsError, match=f"{told}.*in {where}"):
        REFUSED[where](**given_)
