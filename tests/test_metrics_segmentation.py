"""Laws of entity mIoU, recall, cIoU and gIoU."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unigs.metrics.overlaps import IOU_THRESHOLDS, count_overlaps, match_entities
from unigs.metrics.segmentation import EntityQuality, ReferringQuality, rate_entities
from unigs.records import UnigsError


def random_labels(rng, entities, size=(24, 20)):
    """Rectangles over one another, so that labels are regions and some are hidden."""
    labels = np.zeros(size, dtype=np.int64)
    for label in range(1, entities + 1):
        top, left = rng.integers(0, size[0] - 2), rng.integers(0, size[1] - 2)
        height, width = rng.integers(1, size[0] // 2), rng.integers(1, size[1] // 2)
        labels[top : top + height, left : left + width] = label
    return torch.from_numpy(labels)


def jitter(labels, rng):
    moved = torch.roll(labels, tuple(int(s) for s in rng.integers(-3, 4, 2)), (0, 1))
    return torch.where(torch.from_numpy(rng.random(labels.shape) < 0.1), 0, moved)


def permute(labels, order):
    table = torch.zeros(int(labels.max()) + 1, dtype=labels.dtype)
    table[1:] = torch.as_tensor(order)
    return table[labels]


def naive_iou(predicted, true, ignored):
    """IoU of every pair by comparing masks, as the definition reads."""
    seen = ~ignored
    rows = [p for p in predicted[seen].unique().tolist() if p]
    columns = [t for t in true[seen].unique().tolist() if t]
    table = np.zeros((len(rows), len(columns)))
    for r, p in enumerate(rows):
        for c, t in enumerate(columns):
            a, b = (predicted == p) & seen, (true == t) & seen
            table[r, c] = int((a & b).sum()) / int((a | b).sum())
    return table


def computed(metric_type, *pictures):
    metric = metric_type()
    for picture in pictures:
        metric.update(*picture)
    return {name: float(value) for name, value in metric.compute().items()}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), p=st.integers(0, 6), n=st.integers(0, 6))
def test_joint_histogram_equals_comparing_masks(seed, p, n):
    rng = np.random.default_rng(seed)
    predicted, true = random_labels(rng, p) * 7, random_labels(rng, n)
    ignored = torch.from_numpy(rng.random(true.shape) < 0.3)
    assert np.array_equal(
        count_overlaps(predicted, true, ignored).iou, naive_iou(predicted, true, ignored)
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), p=st.integers(0, 5), n=st.integers(0, 5))
def test_matching_has_the_largest_sum_of_all_pairings(seed, p, n):
    iou = np.random.default_rng(seed).random((p, n))
    rows, columns = match_entities(iou)
    small, large = min(p, n), max(p, n)
    wide = iou if p <= n else iou.T
    best = max(
        sum(wide[i, order[i]] for i in range(small)) for order in permutations(range(large), small)
    )
    assert iou[rows, columns].sum() == pytest.approx(best, abs=1e-8)
    assert len(set(rows)) == len(rows) == len(set(columns)) == len(columns)


def test_perfect_prediction_is_exactly_one():
    rng = np.random.default_rng(0)
    pictures = [(labels := random_labels(rng, n), labels) for n in range(1, 30)]
    assert set(computed(EntityQuality, *pictures).values()) == {1.0}
    empty = torch.zeros(4, 4, dtype=torch.int64)
    assert set(computed(ReferringQuality, *pictures, (empty, empty)).values()) == {1.0}


@pytest.mark.parametrize("metric_type", [EntityQuality, ReferringQuality])
def test_order_of_entities_pictures_and_ranks_changes_nothing(metric_type):
    rng = np.random.default_rng(1)
    truths = [random_labels(rng, 9) for _ in range(12)]
    pictures = [(jitter(t, rng), t, torch.from_numpy(rng.random(t.shape) < 0.1)) for t in truths]
    pictures.append((truths[0], torch.zeros_like(truths[0]), None))
    reference = computed(metric_type, *pictures)
    assert reference == computed(metric_type, *reversed(pictures))
    renamed = [
        (permute(p, rng.permutation(int(p.max())) + 1), permute(t, rng.permutation(9) + 1), i)
        for p, t, i in pictures[:-1]
    ]
    assert reference == computed(metric_type, *renamed, pictures[-1])
    ranks = [metric_type() for _ in range(3)]
    for place, picture in enumerate(pictures):
        ranks[place % 3].update(*picture)
    for other in ranks[1:]:
        ranks[0].merge_state(other)
    assert reference == {name: float(value) for name, value in ranks[0].compute().items()}


def test_a_pixel_ignored_equals_a_pixel_cut_away():
    rng = np.random.default_rng(2)
    true = random_labels(rng, 6)
    predicted = jitter(true, rng)
    ignored = torch.zeros_like(true, dtype=torch.bool)
    ignored[:, 12:] = True
    assert np.array_equal(
        rate_entities(count_overlaps(predicted, true, ignored)),
        rate_entities(count_overlaps(predicted[:, :12], true[:, :12])),
    )


def test_recall_counts_the_threshold_itself():
    true = torch.zeros(1, 20, dtype=torch.int64)
    true[0, :20] = 1
    for index, threshold in enumerate(IOU_THRESHOLDS):
        predicted = torch.zeros_like(true)
        predicted[0, : round(threshold * 20)] = 5
        metric = EntityQuality()
        metric.update(predicted, true)
        assert float(metric.compute()["recall"]) == 1.0
        assert int(metric.tally[2:].sum()) in (index, index + 1)  # 0.7 of linspace is 0.7 + 1 ulp


def test_empty_predictions_are_the_floor_and_no_truth_is_no_number():
    true = random_labels(np.random.default_rng(3), 4)
    assert set(computed(EntityQuality, (torch.zeros_like(true), true)).values()) == {0.0}
    assert all(
        np.isnan(v) for v in computed(EntityQuality, (true, torch.zeros_like(true))).values()
    )


def test_no_target_convention():
    some = torch.tensor([[1, 1], [0, 0]])
    none = torch.zeros(2, 2, dtype=torch.int64)
    scores = computed(ReferringQuality, (some, some), (some, none), (none, none), (none, none))
    assert scores == {"ciou": 2 / 4, "giou": 3 / 4, "no_target_accuracy": pytest.approx(2 / 3)}


@pytest.mark.parametrize("metric_type", [EntityQuality, ReferringQuality])
def test_what_cannot_be_compared_is_refused(metric_type):
    labels = torch.ones(1, 4, 4, dtype=torch.int32)
    for bad, message in (
        ((labels, labels[:, :2]), r"shape \(1, 4, 4\); got \(1, 2, 4\)"),
        ((labels.bfloat16(), labels), "bfloat16 cannot count"),
        ((labels * float("nan"), labels), "integers"),
        ((labels, -labels), r"0\.\.65535"),
        ((labels, labels, labels), "ignored as bool"),
        ((labels[None], labels[None]), "integers"),
    ):
        with pytest.raises(UnigsError, match=message):
            metric_type().update(*bad)


def test_batches_and_integer_types_agree():
    rng = np.random.default_rng(4)
    true = torch.stack([random_labels(rng, 5) for _ in range(3)])
    predicted = torch.stack([jitter(t, rng) for t in true])
    reference = computed(EntityQuality, *zip(predicted, true))
    for dtype in (torch.int32, torch.int16, torch.uint8, torch.uint16):
        assert reference == computed(EntityQuality, (predicted.to(dtype), true.to(dtype)))
