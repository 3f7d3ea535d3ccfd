"""Class mIoU, mAcc and PQ: against torchmetrics and scikit-learn, and laws of their tallies."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score
from test_metrics_segmentation import jitter, permute, random_labels
from torchmetrics.detection import PanopticQuality as ReferencePanopticQuality

from unigs.metrics.classes import (
    NOTHING,
    Named,
    PanopticClassQuality,
    SemanticQuality,
    measure_pixels,
    measure_segments,
    rate_pixels,
    rate_segments,
    split_kinds,
    sum_tallies,
)
from unigs.records import UnigsError
from unigs.tasks import ClassTable

TABLE = ClassTable(
    ("cat", "disc", "fog", "grass", "never", "ring", "sky"),
    (True, True, False, False, True, True, False),
)
NAMES = [name for name in TABLE.names if name != "never"]
VOID, NONE = 50, 40
"""Classes of the references: of pixels without a known truth, and of those of no class."""


def rename_some(names, rng, share):
    """Some names become another's, one of no class, or one that the data lack."""
    other = [*NAMES, "unknown", "walrus"]
    return [str(rng.choice(other)) if rng.random() < share else name for name in names]


def random_pictures(rng, count, void=0.2):
    """(prediction, truth, ignored), with missing classes, empty maps and nameless entities."""
    for place in range(count):
        true = random_labels(rng, int(rng.integers(0, 9)), (40, 36))
        truths = [str(rng.choice([*NAMES[: 2 + place % 5], "unknown"])) for _ in range(9)]
        found = jitter(true, rng) * (place % 7 > 0)
        ignored = torch.from_numpy(rng.random(true.shape) < void)
        ignored[:, : int(rng.integers(1, 20))] |= void > 0
        yield Named(found, rename_some(truths, rng, 0.2)), Named(true, truths), ignored


def tally(measure, pictures):
    return sum_tallies(measure(found, true, TABLE, void) for found, true, void in pictures)


def figures_of(pictures):
    pictures = list(pictures)
    segments = split_kinds(tally(measure_segments, pictures), TABLE)
    figures = rate_pixels(tally(measure_pixels, pictures)) | rate_segments(*segments)
    return {name: float(value) for name, value in figures.items()}


def paint(named, missing):
    """The class number of every pixel by a loop over labels; those of no class are ``NONE``."""
    painted = np.full(named.labels.shape, NONE)
    for label, name in enumerate(named.names, 1):
        number = TABLE.names.index(name) if name in TABLE.names else missing
        painted[(named.labels == label).numpy()] = number
    return painted


def paint_truth(true, ignored):
    painted = paint(true, VOID)
    painted[ignored.numpy()] = VOID
    return painted


@pytest.mark.parametrize("void", [0.0, 0.2])
def test_semantic_figures_equal_scikit_learns(void):
    pictures = list(random_pictures(np.random.default_rng(0), 30, void))
    found = np.concatenate([paint(p, NONE).ravel() for p, _, _ in pictures])
    true = np.concatenate([paint_truth(t, v).ravel() for _, t, v in pictures])
    found, true = found[true != VOID], true[true != VOID]
    classes = sorted({*found, *true} - {NONE})
    kept = {"labels": classes, "average": "macro", "zero_division": 0}
    figures = figures_of(pictures)
    assert figures["class_miou"] == pytest.approx(jaccard_score(true, found, **kept), abs=1e-12)
    seen = {**kept, "labels": sorted({*true} - {NONE})}
    assert figures["class_macc"] == pytest.approx(recall_score(true, found, **seen), abs=1e-12)
    assert figures["pixel_accuracy"] == pytest.approx(accuracy_score(true, found), abs=1e-12)
    counts = confusion_matrix(true, found, labels=[*range(len(TABLE)), NONE])
    sums = tally(measure_pixels, pictures)
    for number, name in enumerate([*TABLE.names, NOTHING]):
        row = [counts[number, number], counts[:, number].sum(), counts[number].sum()]
        assert list(sums.get(name, [0, 0, 0])) == row
    assert "never" not in sums
    assert 0.1 < figures["class_miou"] < 0.9


@pytest.mark.parametrize("void", [0.0, 0.2])
def test_class_pq_equals_torchmetrics(void):
    pictures = list(random_pictures(np.random.default_rng(1), 30, void))
    reference = ReferencePanopticQuality(
        things={k for k, thing in enumerate(TABLE.things) if thing},
        stuffs={k for k, thing in enumerate(TABLE.things) if not thing} | {NONE},
        allow_unknown_preds_category=True,
        return_sq_and_rq=True,
        return_per_class=True,
    )
    for found, true, ignored in pictures:
        pairs = (
            torch.stack([torch.from_numpy(painted), one.labels], -1)[None]
            for painted, one in ((paint(found, NONE), found), (paint_truth(true, ignored), true))
        )
        update_reference(reference, *pairs)
    rows = reference.compute()[[reference.cat_id_to_continuous_id[k] for k in range(len(TABLE))]]
    counts = reference.true_positives + reference.false_positives + reference.false_negatives
    occurs = np.array([counts[reference.cat_id_to_continuous_id[k]] > 0 for k in range(len(TABLE))])
    things, figures = np.array(TABLE.things), figures_of(pictures)
    assert occurs.sum() == len(NAMES)
    for suffix, kind in (("", occurs), ("_things", occurs & things), ("_stuff", occurs & ~things)):
        expected = rows[torch.from_numpy(kind)].mean(0).tolist()
        found = [figures[f"class_{name}{suffix}"] for name in ("pq", "sq", "rq")]
        assert found == pytest.approx(expected, abs=1e-7)  # its IoU are float32
    assert 0.1 < figures["class_pq"] < 0.9


def update_reference(metric, found, true):
    """torchmetrics refuses unknown truth; its functional core takes void from both alike."""
    from torchmetrics.functional.detection._panoptic_quality_common import (
        _panoptic_quality_update,
        _prepocess_inputs,
    )

    maps = [
        _prepocess_inputs(metric.things, metric.stuffs, pairs, metric.void_color, True)
        for pairs in (found, true)
    ]
    parts = _panoptic_quality_update(*maps, metric.cat_id_to_continuous_id, metric.void_color)
    names = ("iou_sum", "true_positives", "false_positives", "false_negatives")
    for name, part in zip(names, parts):
        setattr(metric, name, getattr(metric, name) + part)
    metric._update_count += 1


def renumber(named, rng):
    """The same masks and names under other label numbers, with unused ones between."""
    count = len(named.names)
    order = 1 + rng.permutation(2 * count)[:count]
    names = [""] * (2 * count)
    for label, name in zip(order, named.names):
        names[label - 1] = name
    unused = int(named.labels.max())
    return Named(permute(named.labels, order[:unused]), names)


def test_numbers_of_labels_and_order_and_parts_of_pictures_change_no_figure():
    rng = np.random.default_rng(2)
    pictures = list(random_pictures(rng, 12))
    whole = figures_of(pictures)
    renamed = [(renumber(p, rng), renumber(t, rng), v) for p, t, v in reversed(pictures)]
    assert figures_of(renamed) == whole
    for kind in (SemanticQuality, PanopticClassQuality):
        measure = kind.measure
        parts = [tally(measure, pictures[k::3]) for k in range(3)]
        lists = [{name: row.tolist() for name, row in part.items()} for part in parts]
        stored = json.loads(json.dumps([lists[2], lists[0], lists[1]]))
        np.testing.assert_equal(sum_tallies(stored), tally(measure, pictures))
        ranks = [kind(TABLE) for _ in range(3)]
        for place, (found, true, void) in enumerate(pictures):
            ranks[place % 3].update(
                found.labels[None], [found.names], true.labels[None], [true.names], void[None]
            )
        for other in ranks[1:]:
            ranks[0].merge_state(other)
        computed = {name: float(value) for name, value in ranks[0].compute().items()}
        assert computed == {name: whole[name] for name in computed}


def test_perfect_is_one_and_nothing_is_nothing():
    rng = np.random.default_rng(3)
    pictures = list(random_pictures(rng, 12))
    assert set(figures_of((t, t, v) for _, t, v in pictures).values()) == {1.0}
    none = [(Named(torch.zeros_like(t.labels), []), t, v) for _, t, v in pictures]
    silent = figures_of(none)
    assert 0 < silent.pop("pixel_accuracy") < 1  # background is right
    assert set(silent.values()) == {0.0}
    empty = Named(torch.zeros(4, 4, dtype=torch.int64), [])
    figures = figures_of([(empty, empty, torch.ones(4, 4, dtype=torch.bool))])
    assert all(math.isnan(value) for value in figures.values())
    assert all(math.isnan(value) for value in figures_of([]).values())


def one_row(labels, *names):
    return Named(torch.tensor([labels]), names)


def test_by_hand():
    true = one_row([1, 1, 1, 1, 2, 2, 0, 0], "disc", "sky")
    found = one_row([1, 1, 1, 2, 2, 2, 2, 3], "disc", "sky", "disc")
    assert measure_pixels(found, true, TABLE) == {
        "disc": [3, 4, 4], "sky": [2, 4, 2], NOTHING: [0, 0, 2],
    }  # fmt: skip
    assert measure_segments(found, true, TABLE) == {"disc": [0.75, 1, 1, 0], "sky": [0, 0, 1, 1]}
    figures = figures_of([(found, true, None)])
    assert figures["class_miou"] == pytest.approx((3 / 5 + 2 / 4) / 2)
    assert figures["class_macc"] == pytest.approx((3 / 4 + 1) / 2)
    assert figures["pixel_accuracy"] == pytest.approx(5 / 8)
    assert figures["class_pq_things"] == pytest.approx(0.75 / 1.5)
    assert figures["class_pq"] == pytest.approx(0.75 / 1.5 / 2)


def test_a_class_that_is_only_predicted_occurs_and_has_no_recall():
    true = one_row([1, 1, 1, 1], "disc")
    figures = figures_of([(one_row([1, 1, 1, 2], "disc", "sky"), true, None)])
    assert figures["class_miou"] == pytest.approx((0.75 + 0) / 2)
    assert figures["class_macc"] == pytest.approx(0.75)
    assert figures["class_pq"] == pytest.approx((0.75 + 0) / 2)
    assert (figures["class_pq_things"], figures["class_pq_stuff"]) == (0.75, 0)


def test_pairs_are_of_one_class_and_of_more_than_half():
    true = one_row([1, 1, 2, 2], "disc", "ring")
    swapped = one_row([1, 1, 2, 2], "ring", "disc")
    assert measure_segments(swapped, true, TABLE) == {"disc": [0, 0, 1, 1], "ring": [0, 0, 1, 1]}
    half = one_row([1, 0, 2, 2], "disc", "ring")
    assert measure_segments(half, true, TABLE) == {"disc": [0, 0, 1, 1], "ring": [1, 1, 0, 0]}


def test_stuff_is_one_segment_and_things_are_each_their_own():
    parts, whole = [1, 1, 2, 2], [1, 1, 1, 1]
    for name, expected in (("sky", [1, 1, 0, 0]), ("disc", [0, 0, 1, 2])):
        found, true = one_row(whole, name), one_row(parts, name, name)
        assert measure_segments(found, true, TABLE) == {name: expected}


def test_names_that_the_data_lack_say_nothing_and_nameless_truth_is_void():
    true = one_row([1, 1, 1, 2, 2, 0], "disc", "unknown")
    found = one_row([1, 2, 2, 2, 2, 3], "disc", "walrus", "walrus")
    assert measure_pixels(found, true, TABLE) == {"disc": [1, 1, 3], NOTHING: [1, 3, 1]}
    assert measure_segments(found, true, TABLE) == {"disc": [0, 0, 1, 1]}
    inside = one_row([0, 0, 0, 1, 1, 1], "ring")  # two of three pixels are void: never false
    assert measure_segments(inside, true, TABLE) == {"disc": [0, 0, 0, 1]}


@pytest.mark.parametrize("kind", [SemanticQuality, PanopticClassQuality])
def test_maps_and_names_that_do_not_fit_are_refused(kind):
    labels = torch.ones(1, 4, 4, dtype=torch.int32)
    metric = kind(TABLE)
    with pytest.raises(UnigsError, match="a name for each of 1 labels; got 0"):
        metric.update(labels, [[]], labels, [["disc"]])
    with pytest.raises(UnigsError, match="each of 1 pictures; got 2 and 1"):
        metric.update(labels, [["disc"], []], labels, [["disc"]])
    with pytest.raises(UnigsError, match="shape"):
        metric.update(labels, [["disc"]], labels[:, :2], [["disc"]])
    with pytest.raises(UnigsError, match="integers"):
        metric.update(labels.float(), [["disc"]], labels, [["disc"]])
