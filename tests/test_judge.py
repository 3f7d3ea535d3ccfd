"""The judge: what it recognises, by hand and at the ends; how it is trained, saved, read back."""

from __future__ import annotations

import json
import math

import lightning as L
import pytest
import torch
from builders import build_data
from torch.nn.functional import one_hot

from unigs.data import HeldOut
from unigs.evaluation.figures import summarise_rows
from unigs.evaluation.judging import Judges, count_recognised, judge_batch
from unigs.evaluation.predictors import EmptyFloor, Oracle, RandomFloor
from unigs.evaluation.protocol import InputLoader, Inputs
from unigs.metrics.classes import SemanticQuality
from unigs.metrics.segmenter import Segments, SemanticSegmenter, load_segmenter
from unigs.recipes.judge import Judge, balanced_loss
from unigs.records import TASKS, Batch, Prediction
from unigs.tasks import BACKGROUND, UNKNOWN, TaskOptions, list_classes, paint_classes

PLAIN = TaskOptions(64, max_painted=25, min_area=1 / 256, arbitrary_mask_percent=0.0)
"""Whole boxes and no entity too small to count: an entity always lies inside its coarse mask."""


def make_data(shards, **options):
    return build_data(shards, tasks=PLAIN, num_workers=0, seed=3, **options)


class Knows:
    """A perfect segmenter: the asked entities under the given names."""

    name = "perfect"

    def __init__(self, batch, names):
        self.found = Segments(batch.labels, [[1.0] * len(mine) for mine in names], names)

    def __call__(self, images):
        return self.found


def judge_all(data, task, rename, predictor):
    """Figures of a perfect segmenter that calls every asked category by another name."""
    rows = []
    for batch, _ in InputLoader(Inputs(data, HeldOut("val", 12, 4)), [task]):
        names = [[rename(name, mine) for name in mine] for mine in batch.names]
        rows += judge_batch(Judges(segmenter=Knows(batch, names)), batch, predictor(batch))
    return summarise_rows(rows)


@pytest.mark.parametrize("task", ["inpainting", "synthesis"])
def test_a_perfect_segmenter_recognises_everything_and_misnamed_nothing(shards, task):
    data = make_data(shards, task_ratios={task: 1.0})
    vocabulary = list_classes(data.select_sources("val")[0]).names

    def swap(name, asked):
        others = [other for other in vocabulary if other not in asked]
        return others[vocabulary.index(name) % len(others)]

    assert judge_all(data, task, lambda name, asked: name, Oracle())["recognised"] == 1
    assert judge_all(data, task, lambda name, asked: f"{name}-other", Oracle())["recognised"] == 1
    assert judge_all(data, task, swap, Oracle())["recognised"] == 0


def make_batch(task, truth, names, coarse_mask):
    size = (1, *truth.shape)
    return Batch(
        keys=["a"], prompts=[""], asked=[tuple(names)], names=[tuple(names)],
        seed=0, index=torch.tensor([0]),
        task=torch.tensor([TASKS.index(task)]), image=torch.zeros(1, 3, *truth.shape).byte(),
        labels=truth[None].int(), ignored=torch.zeros(size, dtype=torch.bool),
        coarse_mask=coarse_mask[None, None],
    )  # fmt: skip


def found_as(labels, names):
    return Segments(labels[None].int(), [[1.0] * len(names)], [names])


@pytest.mark.parametrize(("rows", "recognised"), [(8, 1), (4, 1), (3, 0), (16, 1), (17, 0)])
def test_synthesis_asks_for_half_the_union(rows, recognised):
    """The asked disc covers rows 0..7; the found one as many rows as said, from the top."""
    truth, seen, whole = torch.zeros(3, 20, 20)
    truth[:8], seen[:rows] = 1, 1
    batch = make_batch("synthesis", truth, ["disc"], whole == 0)
    assert count_recognised(found_as(seen, ["disc"]), batch, 0) == [recognised, 1]
    assert count_recognised(found_as(seen, ["ring"]), batch, 0) == [0, 1]


def test_synthesis_wants_each_name_at_its_own_place():
    truth = torch.zeros(20, 20)
    truth[:5], truth[10:] = 1, 2
    batch = make_batch("synthesis", truth, ["disc", "ring"], truth >= 0)
    assert count_recognised(found_as(truth, ["ring", "disc"]), batch, 0) == [0, 2]
    assert count_recognised(found_as(truth, ["disc", "disc"]), batch, 0) == [1, 2]
    assert count_recognised(found_as(torch.zeros(20, 20), []), batch, 0) == [0, 2]


@pytest.mark.parametrize(
    ("columns", "recognised"), [((0, 4), 2), ((0, 8), 2), ((0, 9), 0), ((4, 8), 0), ((3, 4), 0)]
)
def test_inpainting_asks_for_a_segment_mostly_inside_the_mask(columns, recognised):
    """Two rows of columns 0..3 are to be filled with two discs; 1/256 of the picture is 4 px."""
    mask, seen = torch.zeros(32, 32, dtype=torch.bool), torch.zeros(32, 32)
    mask[:2, :4], seen[:2, slice(*columns)] = True, 1
    truth = torch.zeros(32, 32)
    truth[0, :4], truth[1, :4] = 1, 2
    batch = make_batch("inpainting", truth, ["disc", "disc"], mask)
    assert count_recognised(found_as(seen, ["disc"]), batch, 0) == [recognised, 2]
    assert count_recognised(found_as(seen, ["ring"]), batch, 0) == [0, 2]


def test_known_error_sees_known_pixels_only(shards):
    data = make_data(shards, task_ratios={"inpainting": 1.0})

    class Off(Oracle):
        def __call__(self, batch):
            made = super().__call__(batch)
            steps = torch.where(batch.coarse_mask, 90, 3)
            image = made.image.int() + torch.where(made.image < 128, steps, -steps)
            return Prediction(image.byte(), made.colormap, made.labels, made.scores)

    batches = [
        batch for batch, _ in InputLoader(Inputs(data, HeldOut("val", 4, 4)), ["inpainting"])
    ]
    for predictor, error in ((Oracle(), 0), (EmptyFloor(), 0), (RandomFloor(), 0), (Off(), 3)):
        rows = [row for batch in batches for row in judge_batch(Judges(), batch, predictor(batch))]
        assert summarise_rows(rows)["known_error"] == pytest.approx(error)
    batches[0].coarse_mask[:] = True
    (row, *_) = judge_batch(Judges(), batches[0], Oracle()(batches[0]))
    assert "known_error" not in row
    assert "recognised" not in row


def test_an_entity_weighs_by_the_root_of_its_area():
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 4, 6, 6), torch.ones(1, 6, 6, dtype=torch.int64)
    labels[0, :2, :2], labels[0, 2] = 2, 3
    classes = torch.tensor([9, 0, 2, UNKNOWN])[labels]
    surprise = -logits.log_softmax(1)
    area_px = {1: 26, 2: 4}  # a third one is not known
    expected = sum(
        n**0.5 * surprise[0, c][labels[0] == k].mean() for (k, n), c in zip(area_px.items(), (0, 2))
    )
    total = sum(n**0.5 for n in area_px.values())
    loss = balanced_loss(logits, classes, labels)
    assert loss == pytest.approx(float(expected / total), rel=1e-5)
    classes[classes == UNKNOWN] = BACKGROUND  # no class either
    assert torch.equal(balanced_loss(logits, classes, labels), loss)


def test_validation_figures_are_those_of_a_confusion_matrix(shards):
    from torchmetrics.classification import MulticlassConfusionMatrix

    data = make_data(shards, task_ratios={"entity": 1.0}, samples_per_task=6, batch_size=3)
    table = list_classes(data.select_sources("val")[0])
    judge, counts = Judge(), MulticlassConfusionMatrix(len(table), ignore_index=UNKNOWN)
    judge.quality = SemanticQuality(table)
    torch.manual_seed(0)
    for batch in data.val_dataloader():
        batch.labels[:, :8], batch.ignored[:, 8:16] = 0, True
        true = paint_classes(batch, table)
        assert {UNKNOWN, BACKGROUND} < set(true.unique().tolist())
        wrong = torch.rand(true.shape) < 0.5
        found = torch.where(wrong | (true < 0), torch.randint(4, true.shape), true)
        judge.forward = lambda image, found=found: one_hot(found, len(table)).permute(0, 3, 1, 2)
        judge.validation_step(batch, 0)
        counts.update(found, true.masked_fill(true < 0, UNKNOWN))
    matrix = counts.compute().double()
    right, union = matrix.diag(), matrix.sum(0) + matrix.sum(1) - matrix.diag()
    figures = judge.quality.compute()
    assert figures["pixel_accuracy"] == right.sum() / matrix.sum()
    expected = (right / union)[union > 0].mean()
    assert figures["class_miou"] == pytest.approx(float(expected), abs=1e-15)


def test_training_saves_a_folder_that_judges_as_it_was_trained(shards, tmp_path):
    data = build_data(
        shards, tasks=PLAIN, task_ratios={"entity": 1.0}, global_batch_size=2, steps_per_epoch=1,
        num_workers=0, samples_per_task=2, batch_size=2,
    )  # fmt: skip
    torch.manual_seed(0)  # its weights are drawn; near ties fall otherwise now and then
    judge = Judge(total_steps=2, width=8, out=str(tmp_path / "judge"))
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(judge, data)
    for name, value in trainer.callback_metrics.items():
        assert math.isfinite(value), name
    figures = {"val/pixel_accuracy", "val/class_miou", "val/class_macc"}
    assert figures <= set(trainer.callback_metrics)
    files = {path.name: path for path in (tmp_path / "judge").iterdir()}
    assert set(files) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert str(tmp_path) not in files["config.json"].read_text()
    names = json.loads(files["config.json"].read_text())["id2label"]
    vocabulary = list_classes(data.select_sources("train")[0]).names
    assert [names[str(k)] for k in range(len(names))] == list(vocabulary)

    segmenter = load_segmenter(tmp_path / "judge")
    assert isinstance(segmenter, SemanticSegmenter)
    batch = next(iter(data.val_dataloader()))
    found = segmenter(batch.image)
    with torch.no_grad():
        wanted = judge.eval()(batch.image).argmax(1)
    assert (found.labels > 0).float().mean() > 0.5
    said = torch.stack(
        [
            torch.tensor([-1, *map(vocabulary.index, names)])[labels.long()]
            for names, labels in zip(found.names, found.labels)
        ]
    )
    agree = (said == wanted)[said >= 0].float().mean()
    assert agree > 0.98  # the processor rounds resized pixels to whole numbers
