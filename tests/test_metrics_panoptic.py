"""Class-agnostic PQ against torchmetrics, boundary IoU against erosion of each mask."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from test_metrics_segmentation import jitter, permute, random_labels
from torchmetrics.detection import PanopticQuality

from unigs.metrics.panoptic import PanopticEntityQuality, keep_boundaries, rate_boundaries
from unigs.records import UnigsError


def random_pictures(rng, count, void=0.2):
    for _ in range(count):
        true = random_labels(rng, int(rng.integers(0, 9)), (40, 36))
        ignored = torch.from_numpy(rng.random(true.shape) < void)
        ignored[:, : int(rng.integers(1, 20))] = void > 0
        yield jitter(true, rng), true, ignored


def computed(*pictures):
    metric = PanopticEntityQuality()
    for picture in pictures:
        metric.update(*picture)
    return {name: float(value) for name, value in metric.compute().items()}


def as_category_pairs(labels, ignored=None):
    """(category, instance): things are 1, background is stuff 0, ignored pixels are unknown."""
    category = (labels > 0).long()
    if ignored is not None:
        category[ignored] = 7
    return torch.stack([category, labels], -1)[None]


@pytest.mark.parametrize("void", [0.0, 0.2])
def test_pq_equals_torchmetrics(void):
    rng = np.random.default_rng(0)
    pictures = list(random_pictures(rng, 30, void))
    reference = PanopticQuality(
        things={1},
        stuffs={0},
        allow_unknown_preds_category=True,
        return_sq_and_rq=True,
        return_per_class=True,
    )
    for predicted, true, ignored in pictures:
        # torchmetrics refuses unknown truth; its functional core takes void from both alike.
        update_reference(reference, predicted, true, ignored)
    expected = reference.compute()[0].tolist()
    result = computed(*pictures)
    assert [result["pq"], result["sq"], result["rq"]] == pytest.approx(
        expected, abs=1e-7
    )  # its IoU are float32


def update_reference(metric, predicted, true, ignored):
    from torchmetrics.functional.detection._panoptic_quality_common import (
        _panoptic_quality_update,
        _prepocess_inputs,
    )

    maps = [
        _prepocess_inputs(metric.things, metric.stuffs, pairs, metric.void_color, True)
        for pairs in (as_category_pairs(predicted), as_category_pairs(true, ignored))
    ]
    parts = _panoptic_quality_update(*maps, metric.cat_id_to_continuous_id, metric.void_color)
    names = ("iou_sum", "true_positives", "false_positives", "false_negatives")
    for name, part in zip(names, parts):
        setattr(metric, name, getattr(metric, name) + part)
    metric._update_count += 1


def test_half_is_no_pair():
    halves = torch.tensor([[1, 1, 2, 2]])
    result = computed((torch.ones_like(halves), halves, None))
    assert (result["pq"], result["rq"]) == (0.0, 0.0)


def test_boundaries_equal_erosion_of_each_mask():
    rng = np.random.default_rng(1)
    for distance in (1, 2, 5):
        labels = random_labels(rng, 7, (40, 36))
        band = keep_boundaries(labels, distance)
        for label in labels.unique().tolist():
            if not label:
                continue
            mask = (labels == label).numpy()
            core = binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)
            assert np.array_equal((band == label).numpy(), mask & ~core)


def test_boundary_iou_is_that_of_the_bands():
    true = torch.zeros(50, 50, dtype=torch.int64)
    true[10:40, 10:40] = 1
    predicted = torch.roll(true, 1, 1) * 9
    distance = max(1, round(0.02 * np.hypot(50, 50)))
    bands = [keep_boundaries(labels, distance) > 0 for labels in (predicted, true)]
    expected = int((bands[0] & bands[1]).sum()) / int((bands[0] | bands[1]).sum())
    assert rate_boundaries(predicted, true).tolist() == [expected]
    assert expected < 1 - 1 / 15  # stricter than the masks' own IoU of 29/31


def test_perfect_is_one_and_order_changes_nothing():
    rng = np.random.default_rng(2)
    pictures = list(random_pictures(rng, 10))
    assert set(computed(*((t, t, i) for _, t, i in pictures)).values()) == {1.0}
    reference = computed(*pictures)
    renamed = [
        (
            permute(p, rng.permutation(int(p.max())) + 1),
            permute(t, rng.permutation(int(t.max())) + 1),
            i,
        )
        for p, t, i in reversed(pictures)
    ]
    assert reference == computed(*renamed)
    ranks = [PanopticEntityQuality() for _ in range(3)]
    for place, picture in enumerate(pictures):
        ranks[place % 3].update(*picture)
    for other in ranks[1:]:
        ranks[0].merge_state(other)
    assert reference == {name: float(value) for name, value in ranks[0].compute().items()}


def test_another_size_is_refused():
    labels = torch.ones(4, 4, dtype=torch.int32)
    with pytest.raises(UnigsError, match="shape"):
        PanopticEntityQuality().update(labels, labels[:2])
