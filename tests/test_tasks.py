"""Table 2, Algorithm 1, negatives and prompts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import make_annotated
from hypothesis import given, settings
from hypothesis import strategies as st

from unigs.records import TASKS
from unigs.seeds import rng
from unigs.tasks import (
    RECIPES,
    TaskOptions,
    UnusableSample,
    english_list,
    make_sample,
    speak_category,
    write_prompt,
)
from unigs.tasks.coarse_masks import bezier, draw_coarse_mask, entity_box

OPTIONS = TaskOptions(resolution_px=64, negative_probability=0.0, text_dropout=0.0)
VOCABULARY = ("cat", "dog", "kite", "sky", "zebra")


@pytest.fixture
def scene():
    """Sky above, a dog and a cat on ground, one crowd of kites, one unlabelled strip."""
    labels = np.full((64, 80), 1)
    labels[40:] = 2
    labels[44:60, 10:30] = 3
    labels[44:56, 40:60] = 4
    labels[4:10, 20:40] = 5
    labels[60:] = 0
    return make_annotated(labels, ["sky", "ground", "dog", "cat", "kite"], "void", crowds=(5,))


def sample(scene, task, index=0, **changes):
    options = dataclasses.replace(OPTIONS, **changes)
    return make_sample(
        scene, task, index, seed=0, options=options, vocabulary=VOCABULARY, augment=True
    )


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["dog"], "dog"),
        (["dog", "sky"], "dog and sky"),
        (["dog", "ground", "sky"], "dog, ground, and sky"),
    ],
)
def test_english_lists_read_as_english(names, text):
    assert english_list(names) == text


def test_prompts_are_those_of_table_2():
    assert write_prompt("inpainting", ["dog"]) == "inpainting: generate dog."
    three = ["dog", "ground", "sky"]
    assert write_prompt("synthesis", three) == "synthesis: generate dog, ground, and sky."
    assert write_prompt("referring", ["dog", "dog"]) == "referring: find dog."
    assert write_prompt("entity", ["dog"]) == "panoptic: all entities."


@pytest.mark.parametrize(
    ("name", "spoken"),
    [("Dog", "dog"), ("sky-other-merged", "sky"), ("person_ot", "person"), ("other", "other")],
)
def test_categories_are_spoken_without_suffixes(name, spoken):
    assert speak_category(name) == spoken


def test_recipes_and_task_rows_have_one_order():
    assert tuple(RECIPES) == TASKS


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("index", range(8))
def test_a_sample_is_what_table_2_says(scene, task, index):
    one = sample(scene, task, index)
    recipe = RECIPES[task]
    painted = np.unique(one.labels[one.labels > 0])
    assert list(painted) == list(range(1, len(one.names) + 1))
    if recipe.local:
        assert one.coarse_mask.any()
        assert not one.coarse_mask.all()
        for k in painted:  # what is asked for lies in the hole, up to the jitter of the border
            assert one.coarse_mask[one.labels == k].mean() > 0.5
    else:
        assert one.coarse_mask.all()
    if recipe.draws:
        assert 1 <= len(painted) <= OPTIONS.max_entities
        assert all(name in one.prompt for name in one.names)
    else:
        assert one.prompt == "panoptic: all entities."
        assert set(one.names) == {"sky", "ground", "dog", "cat"}


@pytest.mark.parametrize("task", TASKS)
def test_the_same_index_gives_the_same_sample(scene, task):
    for field in dataclasses.fields(sample(scene, task, 5)):
        first, second = (getattr(sample(scene, task, 5), field.name) for _ in range(2))
        np.testing.assert_array_equal(first, second)


def test_labels_follow_the_picture_through_crop_and_flip(scene):
    for index in range(6):  # the picture's red channel is 20 x label
        one = sample(scene, "entity", index)
        shown = (one.image[0].astype(int) + 10) // 20
        names = np.array(["", *one.names])[one.labels]
        inside = (one.labels > 0) & (shown > 0)
        expected = np.array(["", "sky", "ground", "dog", "cat", "kite"])[shown.clip(0, 5)]
        assert (names[inside] == expected[inside]).mean() > 0.97  # borders are interpolated


def test_crowds_are_never_drawn_and_never_scored(scene):
    for index in range(20):
        for task in TASKS:
            assert "kite" not in sample(scene, task, index).names
    one = sample(scene, "entity")
    shown = (one.image[0].astype(int) + 10) // 20
    assert one.ignored[shown == 5].mean() > 0.9


def test_unlabelled_pixels_are_unknown_for_entity_segmentation_only(scene):
    assert sample(scene, "entity").ignored[-3:].all()
    assert not sample(scene, "referring").ignored[-3:].any()
    known = dataclasses.replace(scene, unlabelled="background")
    assert not sample(known, "entity").ignored[-3:].any()


def test_hidden_labels_are_a_share_of_the_pixels_drawn_by_index_and_never_in_evaluation(scene):
    plain = sample(scene, "entity", 3)
    hidden = sample(scene, "entity", 3, unlabelled_share=0.15)
    np.testing.assert_array_equal(hidden.labels, plain.labels)
    np.testing.assert_array_equal(hidden.image, plain.image)
    assert (hidden.ignored >= plain.ignored).all()
    assert hidden.ignored[~plain.ignored].mean() == pytest.approx(0.15, abs=0.02)
    again, other = (sample(scene, "entity", k, unlabelled_share=0.15) for k in (3, 4))
    np.testing.assert_array_equal(again.ignored, hidden.ignored)
    both = ~plain.ignored & ~sample(scene, "entity", 4).ignored
    assert (other.ignored != hidden.ignored)[both].any()
    assert TaskOptions(unlabelled_share=0.15).for_evaluation().unlabelled_share == 0


def test_negatives_leave_the_target_and_name_something_absent(scene):
    for index in range(20):
        one = sample(scene, "referring", index, negative_probability=1.0)
        assert not one.labels.any()
        assert one.prompt == write_prompt("referring", one.asked)
        here = {"sky", "ground", "dog", "cat", "kite"}
        for name in here & set(
            one.asked
        ):  # present in the picture, but then outside the coarse mask
            label = ["", "sky", "ground", "dog", "cat", "kite"].index(name)
            shown = (one.image[0].astype(int) + 10) // 20
            assert not (one.coarse_mask & (shown == label)).any()


def test_the_share_of_negatives_is_lambda(scene):
    lost = total = 0
    for index in range(400):
        one = sample(scene, "referring", index, negative_probability=0.2, max_entities=1)
        lost += not one.labels.any()
        total += 1
    assert abs(lost / total - 0.2) < 0.07


def test_text_dropout_empties_the_prompt(scene):
    assert sample(scene, "synthesis", text_dropout=1.0).prompt == ""
    share = np.mean([sample(scene, "entity", i, text_dropout=0.3).prompt == "" for i in range(200)])
    assert abs(share - 0.3) < 0.12


def test_a_picture_without_named_entities_is_unusable_by_name():
    empty = make_annotated(np.ones((64, 64)), ["unknown"], key="lost")
    with pytest.raises(UnusableSample, match="made-up/lost"):
        sample(empty, "inpainting")


def test_more_entities_than_the_palette_holds_become_unknown():
    labels = np.arange(64).reshape(8, 8).repeat(8, 0).repeat(8, 1) + 1
    many = make_annotated(labels, [f"thing {k}" for k in range(64)])
    one = sample(many, "entity", max_painted=9)
    assert len(one.names) == 9
    assert one.ignored.mean() == pytest.approx((64 - 9) / 64)


def test_bezier_starts_and_ends_at_its_nodes():
    ends = bezier((1, 2), (5, 9), (7, 3), np.array([0.0, 1.0]))
    np.testing.assert_allclose(ends, [(1, 2), (7, 3)])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0]))
def test_coarse_masks_cover_their_entity_and_stay_near_it(seed, blob):
    draw = np.random.default_rng(seed)
    mask = np.zeros((128, 128), bool)
    top, left = draw.integers(20, 60, 2)
    mask[top : top + 30, left : left + 40] = True
    coarse = draw_coarse_mask([mask], 0.4, blob, rng(0, seed, "coarse mask"))
    assert coarse[mask].mean() > (0.9 if blob else 0.999)
    reach = 0.4 * max(top, left, 128 - top - 30, 128 - left - 40) + 3
    box = entity_box(coarse)
    assert left - box[0] <= reach
    assert top - box[1] <= reach
    assert box[2] - left - 40 <= reach
    assert box[3] - top - 30 <= reach


def test_boxes_are_extended_by_up_to_the_given_part_of_the_room():
    mask = np.zeros((100, 100), bool)
    mask[40:60, 40:60] = True
    boxes = [
        entity_box(draw_coarse_mask([mask], 0.5, 0.0, rng(0, i, "coarse mask"))) for i in range(200)
    ]
    out = np.array(
        [[40 - left, 40 - top, right - 60, bottom - 60] for left, top, right, bottom in boxes]
    )
    assert out.min() >= 0
    assert out.max() <= 20
    assert (abs(out.mean(0) - 10) < 2).all()  # uniform over half of the 40 px beside it
