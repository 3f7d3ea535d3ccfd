"""Evaluation: oracles above, floors below, the same numbers however it is run."""

from __future__ import annotations

import csv
import json
import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from peer_parts import save_tiny_inpainting
from test_metrics_generation import TinyExtractor, save_tiny_mask2former

from unigs.codec import Palette
from unigs.data import HeldOut, Loading, UniGSData
from unigs.evaluation.baselines import load_named
from unigs.evaluation.baselines.diffusion import load_inpainting
from unigs.evaluation.baselines.segmenters import SegmenterBaseline, keep_named
from unigs.evaluation.figures import split_groups, summarise_rows
from unigs.evaluation.fingerprint import fingerprint
from unigs.evaluation.judging import Judges, number_alike
from unigs.evaluation.predictors import EmptyFloor, Oracle, RandomFloor, name_masks
from unigs.evaluation.protocol import InputLoader, Inputs, digest_item
from unigs.evaluation.results import ResultStore
from unigs.evaluation.run import Evaluator, evaluate
from unigs.locks import FolderBusy
from unigs.metrics.average_precision import EntityAP
from unigs.metrics.classes import PanopticClassQuality, SemanticQuality
from unigs.metrics.segmentation import EntityQuality, ReferringQuality
from unigs.metrics.segmenter import Segments, load_segmenter
from unigs.records import TASKS, Prediction, UnigsError
from unigs.systems.joint.pipeline import UniGSPipeline
from unigs.systems.joint.predictor import JointPredictor
from unigs.systems.sampling import Sampling
from unigs.tasks import TaskOptions, list_classes, speak_category
from unigs.verbs.evaluate import evaluate_models, name_model

PALETTE = Palette(cells=5)
ONE_STEP = Sampling(num_inference_steps=1, guidance_scale=1.0, entity_guidance_scale=1.0)


def choose(data, samples_per_task, protocol=None):
    return Inputs(data, HeldOut("val", samples_per_task, 3), protocol)


def score(model, data, out, samples_per_task, protocol=None, **more):
    return evaluate(model, choose(data, samples_per_task, protocol), out, **more)


def read(data, samples_per_task, tasks, **more):
    return InputLoader(choose(data, samples_per_task), tasks, **more)


@pytest.fixture
def data(shards):
    return UniGSData(
        [shards],
        TaskOptions(64, max_painted=25),
        task_ratios={task: 1.0 for task in TASKS},
        loading=Loading(num_workers=0),
        seed=3,
    )


def figures_of(results, drop=("seconds_per_picture",)):
    return {
        task: {
            group: {name: v for name, v in figures.items() if name not in drop}
            for group, figures in groups.items()
        }
        for task, groups in results["figures"].items()
    }


def same(a, b):
    np.testing.assert_equal(figures_of(a), figures_of(b))


def test_the_oracle_is_at_the_top_and_the_floors_at_the_bottom(data, tmp_path, pipeline):
    models = (
        Oracle(palette=PALETTE),
        Oracle("oracle-vae", PALETTE, pipeline.towers),
        RandomFloor(),
        EmptyFloor(),
    )
    found = [score(model, data, tmp_path / model.name, samples_per_task=6) for model in models]
    oracle, through_vae, random, empty = (results["figures"] for results in found)
    for task in TASKS:
        assert oracle[task]["all"]["miou"] > 0.97
        assert oracle[task]["all"]["miou"] >= through_vae[task]["all"]["miou"]
        assert oracle[task]["all"]["ap50"] > random[task]["all"]["ap50"] >= 0
        assert random[task]["all"]["miou"] < 0.5
        assert empty[task]["all"]["miou"] == empty[task]["all"]["recall"] == 0
        assert empty[task]["all"]["ap"] == 0


def test_figures_equal_the_metric_classes_on_the_same_predictions(data, tmp_path):
    model = RandomFloor()
    results = score(model, data, tmp_path / "out", samples_per_task=5)
    for task in TASKS:
        entity, region, ap = EntityQuality(), ReferringQuality(), EntityAP()
        for batch, _ in read(data, 5, [task]):
            made = model(batch)
            entity.update(made.labels, batch.labels, batch.ignored)
            region.update(made.labels, batch.labels, batch.ignored)
            ap.update(made.labels, made.scores, batch.labels, batch.ignored)
        wanted = entity.compute() | region.compute() | ap.compute()
        for name, value in wanted.items():
            np.testing.assert_equal(results["figures"][task]["all"][name], float(value))


def test_the_table_alone_gives_the_means(data, tmp_path):
    results = score(Oracle(palette=PALETTE), data, tmp_path / "out", samples_per_task=5)
    with (tmp_path / "out" / "pictures.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 20
    for task in TASKS:
        mine = [line for line in lines if line["task"] == task and line["miou"]]
        weights = [int(line["entities"]) for line in mine]
        miou = sum(float(r["miou"]) * w for r, w in zip(mine, weights)) / sum(weights)
        assert results["figures"][task]["all"]["miou"] == pytest.approx(miou, abs=1e-5)


CLASS_FIGURES = {"class_miou", "class_macc", "pixel_accuracy"} | {
    f"class_{figure}{kind}" for figure in ("pq", "sq", "rq") for kind in ("", "_things", "_stuff")
}


class Silent(Oracle):
    """Knows the masks and not their names."""

    def __call__(self, batch):
        return replace(super().__call__(batch), names=None)


class Misnamed(Oracle):
    """Calls every mask by the name of another class."""

    def __call__(self, batch):
        made = super().__call__(batch)
        names = sorted({name for mine in batch.names for name in mine})
        other = dict(zip(names, [*names[1:], names[0]]))
        return replace(made, names=[[other.get(name, "") for name in mine] for mine in made.names])


def read_rows(folder):
    lines = (folder / "rows-00000.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_naming_masks_adds_figures_of_classes_to_entity_and_changes_no_other(data, tmp_path):
    kinds = (Oracle, Silent, Misnamed)
    named, silent, wrong = (
        score(kind(palette=PALETTE), data, tmp_path / kind.__name__, 6) for kind in kinds
    )
    for task in TASKS:
        more = named["figures"][task]["all"].keys() - silent["figures"][task]["all"].keys()
        assert more == (CLASS_FIGURES if task == "entity" else set())
    without_classes = {"seconds_per_picture"} | CLASS_FIGURES
    np.testing.assert_equal(figures_of(wrong, without_classes), figures_of(silent))
    told, untold = (read_rows(tmp_path / kind.__name__) for kind in kinds[:2])
    assert told[0] == untold[0]  # of the same inputs
    classes = ("class_pixels", "class_things", "class_stuff")
    for a, b in zip(told[1:], untold[1:], strict=True):
        assert [name in a for name in classes] == [a["task"] == "entity"] * 3
        kept = {name: value for name, value in a.items() if name not in (*classes, "seconds")}
        assert kept == {name: value for name, value in b.items() if name != "seconds"}
    figures = named["figures"]["entity"]["all"]
    assert all(figures[name] > 0.9 for name in CLASS_FIGURES)
    assert wrong["figures"]["entity"]["all"]["class_pq"] < 0.2


def test_class_figures_equal_the_metric_classes_on_the_same_predictions(data, tmp_path):
    results = score(Misnamed(palette=PALETTE), data, tmp_path, samples_per_task=6)
    table = list_classes(data.select_sources("val")[0])
    metrics = (SemanticQuality(table), PanopticClassQuality(table))
    for batch, _ in read(data, 6, ["entity"]):
        made = Misnamed(palette=PALETTE)(batch)
        for metric in metrics:
            metric.update(made.labels, made.names, batch.labels, batch.names, batch.ignored)
    for name, value in (metrics[0].compute() | metrics[1].compute()).items():
        np.testing.assert_equal(results["figures"]["entity"]["all"][name], float(value))


def test_rows_of_before_names_were_kept_give_no_figures_of_a_part(data, tmp_path):
    score(Oracle(palette=PALETTE), data, tmp_path, samples_per_task=6)
    rows = [row for row in read_rows(tmp_path)[1:] if row["task"] == "entity"]
    assert summarise_rows(rows).keys() >= CLASS_FIGURES
    del rows[0]["class_pixels"]
    assert CLASS_FIGURES.isdisjoint(summarise_rows(rows))


def test_a_mask_is_named_after_what_it_shares_most_with():
    true = torch.tensor([[1, 1, 1, 2, 2, 0]])
    found = torch.tensor([[3, 3, 1, 1, 1, 2]])
    assert name_masks(found, 4, true, ["disc", "ring"]) == ["ring", "", "disc", ""]


def test_single_and_multiple_split_by_the_number_of_entities():
    rows = [{"names": ["a"] * count} for count in (1, 2, 1, 3)]
    groups = split_groups(rows)
    assert [len(groups[name]) for name in ("all", "single", "multiple")] == [4, 2, 2]
    assert list(split_groups(rows[:1])) == ["all"]


class Interrupted(Oracle):
    """Stops after some batches."""

    def __init__(self, batches):
        super().__init__(palette=PALETTE)
        self.left = batches

    def __call__(self, batch):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().__call__(batch)


def test_an_interrupted_evaluation_continues(data, tmp_path):
    whole = score(Oracle(palette=PALETTE), data, tmp_path / "whole", samples_per_task=5)
    out = tmp_path / "parts"
    for batches in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            score(Interrupted(batches), data, out, samples_per_task=5)
    rows = out / "rows-00000.jsonl"
    done = len(rows.read_text().splitlines()) - 1
    rows.write_bytes(rows.read_bytes()[:-7])  # killed in the middle of a line
    last = Interrupted(100)
    same(score(last, data, out, samples_per_task=5), whole)
    assert 0 < done < 20
    assert 100 - last.left < 8
    untouched = Interrupted(0)
    same(score(untouched, data, out, samples_per_task=5), whole)


def test_ranks_share_the_work_and_agree(data, tmp_path):
    dealt = [read(data, 5, TASKS, rank=rank, world_size=3).batches for rank in range(3)]
    assert sorted(i for mine in dealt for batch in mine for i in batch) == list(range(20))
    alone = score(RandomFloor(), data, tmp_path / "one", samples_per_task=5)
    for rank in (2, 1, 0):
        evaluator = Evaluator(
            RandomFloor(), choose(data, 5), tmp_path / "three", rank=rank, world_size=3
        )
        if rank == 0:
            with pytest.raises(UnigsError, match="expected 20 pictures"):
                evaluator.finish()  # its own are not scored yet
        for loaded in evaluator.loader:
            evaluator.score(loaded)
    same(evaluator.finish(), alone)
    files = sorted((tmp_path / "three").glob("rows-*.jsonl"))
    assert len(files) == 3
    lines = [line for file in files for line in file.read_text().splitlines()[1:]]
    assert len(lines) == 20  # no picture twice


def test_the_protocol_holds_models_to_the_same_inputs(data, tmp_path):
    first = score(EmptyFloor(), data, tmp_path / "a", samples_per_task=4)
    protocol = tmp_path / "a" / "protocol.json"
    again = score(
        Oracle(palette=PALETTE), data, tmp_path / "b", samples_per_task=4, protocol=protocol
    )
    assert first["inputs"] == again["inputs"]
    assert protocol.read_text() == (tmp_path / "b" / "protocol.json").read_text()
    data.seed = 4
    with pytest.raises(UnigsError, match="expected seed 3 as in the protocol; got 4"):
        score(Oracle(palette=PALETTE), data, tmp_path / "c", samples_per_task=4, protocol=protocol)
    data.seed = 3
    changed = json.loads(protocol.read_text())
    changed["items"][0]["digest"] = "0" * 16
    protocol.write_text(json.dumps(changed))
    with pytest.raises(UnigsError, match="input 0000000000000000 of the protocol"):
        score(Oracle(palette=PALETTE), data, tmp_path / "d", samples_per_task=4, protocol=protocol)
    with pytest.raises(UnigsError, match="expected a protocol"):
        score(
            Oracle(palette=PALETTE),
            data,
            tmp_path / "e",
            samples_per_task=4,
            protocol=tmp_path / "none",
        )


def test_a_protocol_without_its_header_is_none(data, tmp_path):
    path = tmp_path / "protocol.json"
    path.write_text('{"items": []}')
    with pytest.raises(UnigsError, match="expected a protocol"):
        score(EmptyFloor(), data, tmp_path / "a", samples_per_task=1, protocol=path)


def test_the_window_of_the_training_stream_changes_no_held_out_picture(data):
    """A training config names its own, and its header does not."""
    keys = []
    for window_shards in (1, 8):
        data.loading = replace(data.loading, window_shards=window_shards)
        batches = InputLoader(choose(data, 6), TASKS)
        keys.append([key for loaded in batches for key in loaded.batch.keys])
    assert keys[0] == keys[1]


def test_rows_have_one_writer(tmp_path):
    first = ResultStore(tmp_path, {"a": 1})
    with pytest.raises(FolderBusy, match="an evaluation"):
        ResultStore(tmp_path, {"a": 1})
    ResultStore(tmp_path, {"a": 1}, rank=1)
    first.close()
    for _ in range(2):  # a store that refuses lets go as well
        with pytest.raises(UnigsError, match="of the same model and inputs"):
            ResultStore(tmp_path, {"a": 2})
    assert not ResultStore(tmp_path, {"a": 1}).rows


def test_a_digest_sees_every_input(data):
    batch, _ = next(iter(read(data, 3, ["referring"])))
    digests = {digest_item(batch, 0)}
    for name in ("image", "labels"):
        getattr(batch, name)[0].flatten()[0] ^= 1
        digests.add(digest_item(batch, 0))
    for name in ("ignored", "coarse_mask"):
        getattr(batch, name)[0].logical_not_()
        digests.add(digest_item(batch, 0))
    batch.prompts[0] += "."
    digests.add(digest_item(batch, 0))
    assert len(digests) == 6


def test_nothing_to_evaluate_is_an_error(data, tmp_path):
    with pytest.raises(UnigsError, match="expected pictures to evaluate on"):
        score(Oracle(palette=PALETTE), data, tmp_path / "a", samples_per_task=0)
    data.task_ratios = {"entity": 1.0}
    drawer = EmptyFloor()
    drawer.tasks = ("inpainting",)
    with pytest.raises(UnigsError, match="expected pictures of"):
        score(drawer, data, tmp_path / "c", samples_per_task=2)
    with pytest.raises(UnigsError, match="no-such-split"):
        evaluate(Oracle(), Inputs(data, HeldOut("no-such-split")), tmp_path / "b")


@pytest.mark.parametrize("field", ["image", "labels", "scores", "names", "float", "nan"])
def test_a_prediction_that_does_not_fit_is_refused(data, tmp_path, field):
    class Wrong(EmptyFloor):
        def __call__(self, batch):
            made = super().__call__(batch)
            parts = {name: getattr(made, name) for name in made.__slots__}
            parts |= {
                "image": {"image": made.image[..., :9]},
                "labels": {"labels": made.labels[:, :9]},
                "scores": {"scores": made.scores[1:]},
                "names": {"names": [["disc"]] * len(batch)},
                "float": {"image": made.image / 255},
                "nan": {"labels": made.labels + 1, "scores": [[math.nan]] * len(batch)},
            }[field]
            return Prediction(**parts)

    with pytest.raises(UnigsError, match="expected"):
        score(Wrong(), data, tmp_path, samples_per_task=2)


def test_results_of_other_weights_are_never_mixed(data, tmp_path, pipeline):
    model = JointPredictor(pipeline, "ours", ONE_STEP)
    score(model, data, tmp_path, samples_per_task=1)
    before = fingerprint(pipeline.unet)
    weight = next(pipeline.unet.parameters())
    with torch.no_grad():
        weight.flatten()[0] += 0.01
    try:
        assert fingerprint(pipeline.unet) != before
        with pytest.raises(UnigsError, match="expected results of"):
            score(model, data, tmp_path, samples_per_task=1)
    finally:
        with torch.no_grad():
            weight.flatten()[0] -= 0.01
    other = JointPredictor(pipeline, "ours", replace(ONE_STEP, num_inference_steps=2))
    with pytest.raises(UnigsError, match="expected results of"):
        score(other, data, tmp_path, samples_per_task=1)
    remembers = {"all": Sampling(guided_filter=True)}
    flagged = UniGSPipeline(**pipeline.components, palette=PALETTE, sampling=remembers)
    other = JointPredictor(flagged, "ours", ONE_STEP)  # the same weights, told nothing
    with pytest.raises(UnigsError, match="expected results of"):
        score(other, data, tmp_path, samples_per_task=1)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer", "scheduler", "palette"])
def test_results_of_another_part_are_refused_and_it_is_named(data, tmp_path, pipeline, part):
    score(JointPredictor(pipeline, "ours", ONE_STEP), data, tmp_path, samples_per_task=1)
    parts, palette = dict(pipeline.components), PALETTE
    if part == "palette":
        palette = Palette(cells=4)
    elif part == "scheduler":
        parts[part] = type(parts[part]).from_config(parts[part].config, beta_end=0.02)
    else:
        parts[part] = deepcopy(parts[part])
    if part == "tokenizer":
        parts[part].model_max_length = 20
    elif part in ("vae", "text_encoder"):
        with torch.no_grad():
            next(parts[part].parameters()).flatten()[0] += 0.01
    other = JointPredictor(UniGSPipeline(**parts, palette=palette), "ours", ONE_STEP)
    named = r"pipeline.(config|palette)" if part == "palette" else f"pipeline.{part}"
    with pytest.raises(UnigsError, match=f"expected results of.*parts.{named}"):
        score(other, data, tmp_path, samples_per_task=1)


def test_results_of_another_oracle_are_refused(data, tmp_path, pipeline):
    score(Oracle("oracle-vae", PALETTE, pipeline.towers), data, tmp_path, samples_per_task=1)
    towers = deepcopy(pipeline.towers)
    with torch.no_grad():
        next(towers.vae.parameters()).flatten()[0] += 0.01
    with pytest.raises(UnigsError, match=r"parts.towers.vae"):
        score(Oracle("oracle-vae", PALETTE, towers), data, tmp_path, samples_per_task=1)
    with pytest.raises(UnigsError, match=r"parts.palette.cells: 3 \(saved 5\)"):
        score(
            Oracle("oracle-vae", Palette(cells=3), pipeline.towers),
            data,
            tmp_path,
            samples_per_task=1,
        )


@pytest.mark.parametrize(
    "models", [["a/pipeline", "b/../a"], ["oracle", "floor-empty", "oracle"], ["x/m", "y/m"]]
)
def test_two_models_of_one_name_are_refused_before_any_is_read(tmp_path, models):
    with pytest.raises(UnigsError, match="different names"):
        evaluate_models(models, [str(tmp_path / "nowhere")], str(tmp_path))


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("runs/gss/ff", "ff"),
        ("runs/pix2seq-d/model", "pix2seq-d"),
        ("runs/joint/pipeline", "joint"),
    ],
)
def test_a_folder_called_model_or_pipeline_is_named_by_its_run(folder, name):
    assert name_model(folder) == name


@pytest.mark.parametrize("row", [b'{"index": 3, "ta', b"[]", b"null", b"{}", b"[" * 100_000])
def test_a_damaged_row_names_its_file_and_line(data, tmp_path, row):
    score(EmptyFloor(), data, tmp_path, samples_per_task=1)
    path = tmp_path / "rows-00000.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], row, *lines[2:]]) + b"\n")
    with pytest.raises(UnigsError, match=r"rows-00000.jsonl, line 2"):
        score(EmptyFloor(), data, tmp_path, samples_per_task=1)


def test_the_pipeline_is_asked_for_each_task_by_its_own_conditions(data, pipeline):
    for task in TASKS:
        batch, _ = next(iter(read(data, 2, [task])))
        made = JointPredictor(pipeline, sampling=ONE_STEP)(batch)
        given = {
            "inpainting": {"image": batch.image, "coarse_mask": batch.coarse_mask},
            "synthesis": {"labels": batch.labels},
            "referring": {"image": batch.image, "coarse_mask": batch.coarse_mask},
            "entity": {"image": batch.image},
        }[task]
        words = {"prompt": batch.prompts, "indices": batch.index.tolist()}
        again = pipeline.predict(task, **given, **words, sampling=ONE_STEP)
        assert torch.equal(made.labels, again.labels)
        assert torch.equal(made.image, again.image)
        if task == "inpainting":
            keep = ~batch.coarse_mask.expand_as(batch.image)
            assert torch.equal(made.image[keep], batch.image[keep])


def test_pairs_show_under_one_number():
    true = torch.tensor([[1, 1, 2, 2, 0]])
    predicted = torch.tensor([[2, 2, 1, 1, 3]])
    assert number_alike(predicted, true).tolist() == [[1, 1, 2, 2, 5]]


class CountingExtractor(TinyExtractor):
    """How many pictures it has seen."""

    seen = 0

    def forward(self, images):
        self.seen += len(images)
        return super().forward(images)


def test_pictures_are_judged_and_real_ones_only_once(data, tmp_path):
    pytest.importorskip("cleanfid")
    segmenter = load_segmenter(save_tiny_mask2former(tmp_path / "judge"))
    extractor = CountingExtractor()
    judges = Judges(inception=extractor, segmenter=segmenter, inception_id="tiny")
    shared = {"judges": judges, "samples_per_task": 8, "cache": tmp_path / "cache"}
    floor = score(RandomFloor(), data, tmp_path / "floor", **shared)
    assert extractor.seen == 2 * 8 * 2
    extractor.seen = 0
    oracle = score(Oracle(palette=PALETTE), data, tmp_path / "oracle", **shared)
    assert extractor.seen == 2 * 8
    for task in ("inpainting", "synthesis"):
        assert oracle["figures"][task]["all"]["fid"] == pytest.approx(0, abs=1e-6)
        assert floor["figures"][task]["all"]["fid"] > 1
        assert set(oracle["figures"][task]) == {"all", "single", "multiple"}
    assert 0 <= oracle["figures"]["synthesis"]["all"]["synthesis_miou"] <= 1
    assert "fid" not in oracle["figures"]["entity"]["all"]
    assert list(oracle["missing"]) == ["clip_score"]
    extractor.seen = 0
    next((tmp_path / "cache").iterdir()).unlink()
    again = score(EmptyFloor(), data, tmp_path / "empty", **shared)
    assert extractor.seen == 8 * 2 + 8
    assert again["figures"]["inpainting"]["all"]["fid"] > 1


def test_stable_diffusion_inpainting_is_a_predictor(base, data, tmp_path):
    model = load_inpainting(save_tiny_inpainting(base, tmp_path / "sd"), steps=2)
    batch, _ = next(iter(read(data, 3, ["inpainting"])))
    made = model(batch)
    hole = batch.coarse_mask.expand_as(batch.image)
    assert torch.equal(made.image[~hole], batch.image[~hole])
    assert not torch.equal(made.image[hole], batch.image[hole])
    batch.index[:] = batch.index.flip(0)
    assert not torch.equal(model(batch).image, made.image)
    results = score(model, data, tmp_path / "out", samples_per_task=2)
    assert list(results["figures"]) == ["inpainting"]
    figures = results["figures"]["inpainting"]["all"]
    assert "known_error" in figures
    assert figures.keys().isdisjoint({"miou", "recall", "ap", "pq", "giou"}), "it finds no masks"
    with pytest.raises(UnigsError, match="sd-inpainting=FOLDER"):
        load_inpainting(tmp_path / "absent")


def test_mask2former_is_a_predictor(data, tmp_path):
    model = load_named(save_tiny_mask2former(tmp_path / "judge"), kind="mask2former")
    results = score(model, data, tmp_path / "out", samples_per_task=2)
    assert sorted(results["figures"]) == ["entity", "referring"]
    assert results["figures"]["entity"]["all"].keys() >= CLASS_FIGURES
    assert results["figures"]["referring"]["all"].keys().isdisjoint(CLASS_FIGURES)
    vocabulary = {speak_category(name) for name in model.segmenter.classes.values()}
    for task in model.tasks:
        batch, _ = next(iter(read(data, 3, [task])))
        made = model(batch)
        assert [len(names) for names in made.names] == [len(scores) for scores in made.scores]
        assert {name for names in made.names for name in names} <= vocabulary


def test_referring_keeps_named_segments_inside_the_mask():
    labels = torch.tensor([[1, 1, 2, 2, 3, 3]], dtype=torch.int32)
    inside = torch.tensor([[True, True, True, True, True, False]])
    found, kept = keep_named(labels, ["dog", "sky", "dog"], ["dog"], inside)
    assert found.tolist() == [[1, 1, 0, 0, 0, 0]]
    assert kept == [1]
    found, kept = keep_named(labels, ["dog", "sky", "dog"], ["sky"], inside)
    assert found.tolist() == [[0, 0, 1, 1, 0, 0]]
    assert kept == [2]


def test_masks_that_are_kept_keep_their_scores_and_names(data):
    """A segmenter that knows the asked entities, in reverse, and calls the rest a walrus."""
    batch, _ = next(iter(read(data, 3, ["referring"])))
    counts = torch.tensor([len(names) for names in batch.names])[:, None, None]
    labels = torch.where(batch.labels > 0, counts + 2 - batch.labels, 1).int()
    names = [["Walrus", *(name.upper() for name in mine[::-1])] for mine in batch.names]
    scores = [[k / 10 for k in range(len(mine))] for mine in names]
    made = SegmenterBaseline(lambda images: Segments(labels, scores, names))(batch)
    assert made.names == [list(mine[::-1]) for mine in batch.names]
    assert made.scores == [mine[1:] for mine in scores]
    assert any(made.names)


def test_weights_of_another_unet_are_no_baseline(base, tmp_path):
    folder = save_tiny_inpainting(base, tmp_path / "sd")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"in_channels": 4}))
    with pytest.raises((UnigsError, RuntimeError)):
        load_inpainting(folder)
