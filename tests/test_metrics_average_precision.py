"""AP^e against pycocotools, and the laws that pycocotools does not keep."""

from itertools import permutations

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_metrics_segmentation import jitter, permute, random_labels

from unigs.metrics.average_precision import (
    EntityAP,
    count_truths,
    integrate_precision,
    match_detections,
)
from unigs.records import UnigsError

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def cocoeval(pictures):
    """AP, AP50, AP75 and by size from pycocotools; pictures are (predicted, scores, true)."""
    truths, found, images = [], [], []
    for image, (predicted, scores, true) in enumerate(pictures, 1):
        images.append({"id": image, "height": true.shape[0], "width": true.shape[1]})
        for labels, rows, values in ((true, truths, None), (predicted, found, scores)):
            for label in labels.unique().tolist():
                if not label:
                    continue
                mask = rle.encode(np.asfortranarray((labels == label).numpy().astype(np.uint8)))
                rows.append(
                    {
                        "id": len(rows) + 1,
                        "image_id": image,
                        "category_id": 1,
                        "iscrowd": 0,
                        "area": float(rle.area(mask)),
                        "segmentation": mask,
                        **({} if values is None else {"score": values[label - 1]}),
                    }
                )
    truth = COCO()
    truth.dataset = {"info": {}, "images": images, "annotations": truths, "categories": [{"id": 1}]}
    truth.createIndex()
    if found:
        predictions = truth.loadRes(found)
    else:
        predictions = COCO()
        predictions.dataset = truth.dataset | {"annotations": []}
        predictions.createIndex()
    run = COCOeval(truth, predictions, "segm")
    run.params.useCats = 0
    run.evaluate()
    run.accumulate()
    precision = run.eval["precision"][:, :, 0, :, -1]  # threshold, recall, size
    cuts = (precision, precision[0], precision[5], *(precision[..., a] for a in (1, 2, 3)))
    values = [np.mean(c if i > 2 else c[..., 0]) for i, c in enumerate(cuts)]
    return {n: np.nan if v == -1 else v for n, v in zip(NAMES, values)}


def ours(pictures):
    metric = EntityAP()
    for predicted, scores, true in pictures:
        metric.update(predicted[None], [scores], true[None])
    return {name: float(value) for name, value in metric.compute().items()}


def random_pictures(rng, count, entities=12, size=(150, 130)):
    pictures = []
    for _ in range(count):
        true = random_labels(rng, int(rng.integers(0, entities)), size)
        predicted = jitter(true, rng) if rng.random() < 0.7 else random_labels(rng, 8, size)
        pictures.append((predicted, rng.random(int(predicted.max())).tolist(), true))
    return pictures


def largest_difference(a, b):
    assert [np.isnan(a[n]) for n in NAMES] == [np.isnan(b[n]) for n in NAMES]
    return float(np.nanmax(np.abs([a[n] - b[n] for n in NAMES])))


def break_ties(pictures):
    """Scores without ties that say: by score, then by area (the areas must differ)."""
    keys = sorted(
        {
            (score, int((predicted == label).sum()), place, label)
            for place, (predicted, scores, _) in enumerate(pictures)
            for label, score in enumerate(scores, 1)
        }
    )
    rank = {(place, label): i for i, (_, _, place, label) in enumerate(keys)}
    return [
        (p, [float(rank[place, label]) for label in range(1, len(s) + 1)], t)
        for place, (p, s, t) in enumerate(pictures)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_random_pictures_equal_pycocotools(seed):
    rng = np.random.default_rng(seed)
    pictures = random_pictures(rng, 12)
    empty = torch.zeros(150, 130, dtype=torch.int64)
    pictures += [
        (empty, [], pictures[0][2]),
        (pictures[0][0], [s / 2 for s in pictures[0][1]], empty),
    ]
    pictures += [(empty, [], empty)]
    assert largest_difference(ours(pictures), cocoeval(pictures)) < 1e-12


def test_more_than_a_hundred_detections_equal_pycocotools():
    rng = np.random.default_rng(7)
    grid = torch.arange(144).reshape(12, 12).repeat_interleave(11, 0).repeat_interleave(11, 1) + 1
    pictures = [(jitter(grid, rng), rng.random(144).tolist(), grid) for _ in range(3)]
    assert largest_difference(ours(pictures), cocoeval(pictures)) < 1e-12


def test_the_hundred_best_are_a_hundred_and_of_equal_scores_the_largest():
    grid = torch.arange(121).reshape(11, 11).repeat_interleave(11, 0).repeat_interleave(11, 1) + 1
    scores = np.random.default_rng(0).permutation(121) / 121
    pictures = [(grid, scores.tolist(), grid)]
    assert largest_difference(ours(pictures), cocoeval(pictures)) < 1e-12
    assert ours(pictures)["ap"] == pytest.approx(np.mean(np.arange(101) / 100 <= 100 / 121))
    rows, columns = torch.arange(112)[:, None], torch.arange(130)[None]
    true = torch.where(columns <= rows, rows + 1, 0)  # areas 1..112
    predicted = torch.where(rows < 12, torch.roll(true, 14, 1), true)  # the 12 smallest are false
    ties = [(predicted, [0.5] * 112, true)]
    assert largest_difference(ours(ties), cocoeval(break_ties(ties))) < 1e-12


def test_iou_at_a_threshold_equals_pycocotools():
    pictures = []
    for tenths in range(10, 21):
        true = torch.ones(8, 20, dtype=torch.int64)
        predicted = true.clone()
        predicted[:, tenths:] = 0
        pictures.append((predicted, [tenths / 20], true))
    halves = torch.ones(8, 20, dtype=torch.int64)
    halves[:, 10:] = 2
    pictures += [(halves, [0.91, 0.81], true), (true, [0.71], halves)]
    assert largest_difference(ours(pictures), cocoeval(pictures)) < 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_ties_are_decided_by_area(seed):
    rng = np.random.default_rng(100 + seed)
    pictures = random_pictures(rng, 6)
    coarse = [(p, [round(s * 3) / 3 for s in scores], t) for p, scores, t in pictures]
    assert len({s for _, scores, _ in coarse for s in scores}) < 5 < sum(len(c[1]) for c in coarse)
    assert largest_difference(ours(coarse), cocoeval(break_ties(coarse))) < 1e-12


def test_equal_scores_and_areas_count_the_false_first():
    true = torch.zeros(6, 40, dtype=torch.int64)
    true[:, :10] = 1
    hit, miss = torch.zeros_like(true), torch.zeros_like(true)
    hit[:, :10] = 1
    miss[:, 20:30] = 1
    pictures = [(hit, [0.5], true), (miss, [0.5], true), (miss, [0.5], true), (hit, [0.5], true)]
    by_order = [cocoeval(list(order))["ap"] for order in permutations(pictures)]
    assert min(by_order) < max(by_order)
    values = {ours(list(order))["ap"] for order in permutations(pictures)}
    assert len(values) == 1
    assert values.pop() == pytest.approx(min(by_order), abs=1e-12)


def test_overlapping_masks_and_ignored_sizes_equal_pycocotools():
    """Any IoU table, not only those of label maps: the greedy choice itself is COCO's."""
    rng = np.random.default_rng(8)
    for _ in range(20):
        p, n = rng.integers(1, 8, 2)
        masks = [
            np.asfortranarray(np.stack([_box(rng) for _ in range(k)], -1)) for k in (int(p), int(n))
        ]
        found, true = (rle.encode(m) for m in masks)
        scores = rng.permutation(int(p)) / 10
        iou = np.asarray(rle.iou(found, true, [0] * int(n)))
        areas = rle.area(found).astype(np.int64), rle.area(true).astype(np.int64)
        records, once = match_detections(iou, scores, *areas), np.ones((1, int(p)), int)
        (table,) = integrate_precision(records, count_truths(areas[1])[None], once).mean(2)
        reference = _cocoeval_masks(found, scores, true)
        assert np.allclose(table, reference, atol=1e-12, equal_nan=True)


def _box(rng):
    mask = np.zeros((120, 120), np.uint8)
    top, left, height, width = rng.integers(0, 40), rng.integers(0, 40), *rng.integers(8, 80, 2)
    mask[top : top + height, left : left + width] = 1
    return mask


def _cocoeval_masks(found, scores, true):
    truth, predictions = COCO(), COCO()
    rows = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": float(rle.area(m))}
        | {"segmentation": m}
        for i, m in enumerate(true)
    ]
    base = {"images": [{"id": 1, "height": 120, "width": 120}], "categories": [{"id": 1}]}
    truth.dataset = base | {"annotations": rows, "info": {}}
    truth.createIndex()
    predictions = truth.loadRes(
        [
            {"image_id": 1, "category_id": 1, "segmentation": m, "score": float(s)}
            for m, s in zip(found, scores)
        ]
    )
    run = COCOeval(truth, predictions, "segm")
    run.params.useCats = 0
    run.evaluate()
    run.accumulate()
    precision = run.eval["precision"][:, :, 0, :, -1]
    return np.where(precision == -1, np.nan, precision).mean((0, 1))


def test_perfect_prediction_is_exactly_one():
    rng = np.random.default_rng(9)
    for entities in (1, 2, 9):
        true = random_labels(rng, entities, (150, 130))
        scores = rng.random(entities).tolist()
        values = [v for v in ours([(true, scores, true)]).values() if not np.isnan(v)]
        assert set(values) == {1.0}


def test_order_of_entities_pictures_and_ranks_changes_nothing():
    rng = np.random.default_rng(10)
    pictures = [
        (p, [round(s * 2) / 2 for s in scores], t) for p, scores, t in random_pictures(rng, 9)
    ]
    reference = ours(pictures)
    assert largest_difference(reference, ours(pictures[::-1])) == 0
    renamed = []
    for predicted, scores, true in pictures:
        order = rng.permutation(len(scores)) + 1
        moved = [0.0] * len(scores)
        for label, score in enumerate(scores):
            moved[order[label] - 1] = score
        true = permute(true, rng.permutation(int(true.max())) + 1)
        renamed.append((permute(predicted, order), moved, true))
    assert largest_difference(reference, ours(renamed)) == 0
    ranks = [EntityAP() for _ in range(3)]
    for place, (predicted, scores, true) in enumerate(pictures):
        ranks[place % 2].update(predicted[None], [scores], true[None])  # the third stays empty
    for other in ranks[1:]:
        ranks[0].merge_state(other)
    merged = {name: float(value) for name, value in ranks[0].compute().items()}
    assert largest_difference(reference, merged) == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_false_mask_never_raises_ap(seed):
    rng = np.random.default_rng(seed)
    pictures = random_pictures(rng, 5)
    before = ours(pictures)
    for place, (predicted, scores, true) in enumerate(pictures):
        free = (predicted == 0) & (true == 0)
        false = torch.where(free, len(scores) + 1, predicted)
        changed = [*pictures]
        changed[place] = (false, [*scores, float(rng.random())], true)
        after = ours(changed)
        assert all(not after[n] > before[n] for n in NAMES)


def test_leftovers_of_predictions_on_ignored_pixels_are_not_false():
    true = torch.zeros(1, 10, 10, dtype=torch.int64)
    true[0, :, :4] = 1
    predicted = true.clone()
    predicted[0, :, 4:] = 2
    ignored = torch.zeros(1, 10, 10, dtype=torch.bool)
    ignored[0, :, 6:] = True
    for mask, expected in ((ignored, 1.0), (None, 0.5)):
        metric = EntityAP()
        metric.update(predicted, [[0.5, 0.9]], true, mask)
        assert float(metric.compute()["ap"]) == expected


def test_scores_in_bfloat16_and_bad_scores():
    labels = torch.ones(1, 4, 4, dtype=torch.int32)
    metric = EntityAP()
    metric.update(labels, [torch.tensor([0.3], dtype=torch.bfloat16)], labels)
    assert float(metric.compute()["ap"]) == 1.0
    for scores, message in (
        ([[]], "each label up to 1; got 0"),
        ([[float("nan")]], "finite"),
        ([], "one list of scores per picture"),
    ):
        with pytest.raises(UnigsError, match=message):
            EntityAP().update(labels, scores, labels)
    with pytest.raises(UnigsError, match="shape"):
        EntityAP().update(labels, [[1.0]], labels[:, :2])


def test_nothing_seen_is_no_number():
    assert all(np.isnan(float(v)) for v in EntityAP().compute().values())
