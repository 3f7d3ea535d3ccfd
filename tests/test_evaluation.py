"""Evaluation: oracles above, floors below, the same numbers however it is run."""

from __future__ import annotations

import csv
import json
import math
from copy import deepcopy

import lightning as L
import numpy as np
import pytest
import torch
from test_metrics_generation import TinyExtractor, save_tiny_mask2former
from torch.utils.data import DataLoader

from unigs.codec import Palette
from unigs.data import UniGSData
from unigs.evaluation.baselines import keep_named, load_inpainting, load_mask2former, split_names
from unigs.evaluation.fingerprint import fingerprint
from unigs.evaluation.judging import Judges, number_alike
from unigs.evaluation.predictors import (
    EmptyFloor,
    Oracle,
    PipelinePredictor,
    RandomFloor,
    run_batch,
)
from unigs.evaluation.protocol import InputLoader, digest_item
from unigs.evaluation.results import split_groups
from unigs.evaluation.run import evaluate, evaluate_models
from unigs.metrics.average_precision import EntityAP
from unigs.metrics.segmentation import EntityQuality, ReferringQuality
from unigs.metrics.segmenter import load_segmenter
from unigs.pipeline import UniGSPipeline
from unigs.records import TASKS, Prediction, UnigsError
from unigs.tasks import TaskOptions, write_prompt

PALETTE = Palette(cells=5)


@pytest.fixture
def data(shards):
    return UniGSData(
        [shards],
        TaskOptions(64, palette_cells=5),
        task_ratios={task: 1.0 for task in TASKS},
        num_workers=0,
        val_batch_size=3,
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
    models = (Oracle(PALETTE), Oracle(PALETTE, pipeline.towers), RandomFloor(), EmptyFloor())
    found = [evaluate(model, data, tmp_path / model.name, samples_per_task=6) for model in models]
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
    results = evaluate(model, data, tmp_path / "out", samples_per_task=5)
    for task in TASKS:
        entity, region, ap = EntityQuality(), ReferringQuality(), EntityAP()
        for batch, _ in InputLoader(data, 5, [task]):
            made = model(batch)
            entity.update(made.labels, batch.labels, batch.ignored)
            region.update(made.labels, batch.labels, batch.ignored)
            ap.update(made.labels, made.scores, batch.labels, batch.ignored)
        wanted = entity.compute() | region.compute() | ap.compute()
        for name, value in wanted.items():
            np.testing.assert_equal(results["figures"][task]["all"][name], float(value))


def test_the_table_alone_gives_the_means(data, tmp_path):
    results = evaluate(Oracle(PALETTE), data, tmp_path / "out", samples_per_task=5)
    with (tmp_path / "out" / "pictures.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 20
    for task in TASKS:
        mine = [line for line in lines if line["task"] == task and line["miou"]]
        weights = [int(line["entities"]) for line in mine]
        miou = sum(float(r["miou"]) * w for r, w in zip(mine, weights)) / sum(weights)
        assert results["figures"][task]["all"]["miou"] == pytest.approx(miou, abs=1e-5)


def test_single_and_multiple_split_by_the_number_of_entities():
    rows = [{"names": ["a"] * count} for count in (1, 2, 1, 3)]
    groups = split_groups(rows)
    assert [len(groups[name]) for name in ("all", "single", "multiple")] == [4, 2, 2]
    assert list(split_groups(rows[:1])) == ["all"]


class Interrupted(Oracle):
    """Stops after some batches."""

    def __init__(self, batches):
        super().__init__(PALETTE)
        self.left = batches

    def __call__(self, batch):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().__call__(batch)


def test_an_interrupted_evaluation_continues(data, tmp_path):
    whole = evaluate(Oracle(PALETTE), data, tmp_path / "whole", samples_per_task=5)
    out = tmp_path / "parts"
    for batches in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            evaluate(Interrupted(batches), data, out, samples_per_task=5)
    rows = out / "rows-00000.jsonl"
    done = len(rows.read_text().splitlines()) - 1
    rows.write_bytes(rows.read_bytes()[:-7])  # killed in the middle of a line
    last = Interrupted(100)
    same(evaluate(last, data, out, samples_per_task=5), whole)
    assert 0 < done < 20
    assert 100 - last.left < 8
    untouched = Interrupted(0)
    same(evaluate(untouched, data, out, samples_per_task=5), whole)


def test_ranks_share_the_work_and_agree(data, tmp_path):
    dealt = [InputLoader(data, 5, TASKS, rank=rank, world_size=3).batches for rank in range(3)]
    assert sorted(i for mine in dealt for batch in mine for i in batch) == list(range(20))
    alone = evaluate(RandomFloor(), data, tmp_path / "one", samples_per_task=5)
    for rank in (2, 1):
        shared = {"samples_per_task": 5, "rank": rank, "world_size": 3}
        assert evaluate(RandomFloor(), data, tmp_path / "three", **shared) is None
    same(evaluate(RandomFloor(), data, tmp_path / "three", samples_per_task=5, world_size=3), alone)
    files = sorted((tmp_path / "three").glob("rows-*.jsonl"))
    assert len(files) == 3
    lines = [line for file in files for line in file.read_text().splitlines()[1:]]
    assert len(lines) == 20  # no picture twice


def test_the_protocol_holds_models_to_the_same_inputs(data, tmp_path):
    first = evaluate(EmptyFloor(), data, tmp_path / "a", samples_per_task=4)
    protocol = tmp_path / "a" / "protocol.json"
    again = evaluate(Oracle(PALETTE), data, tmp_path / "b", samples_per_task=4, protocol=protocol)
    assert first["inputs"] == again["inputs"]
    assert protocol.read_text() == (tmp_path / "b" / "protocol.json").read_text()
    data.seed = 4
    with pytest.raises(UnigsError, match="expected seed 3 as in the protocol; got 4"):
        evaluate(Oracle(PALETTE), data, tmp_path / "c", samples_per_task=4, protocol=protocol)
    data.seed = 3
    changed = json.loads(protocol.read_text())
    changed["items"][0]["digest"] = "0" * 16
    protocol.write_text(json.dumps(changed))
    with pytest.raises(UnigsError, match="input 0000000000000000 of the protocol"):
        evaluate(Oracle(PALETTE), data, tmp_path / "d", samples_per_task=4, protocol=protocol)
    with pytest.raises(UnigsError, match="expected a protocol"):
        evaluate(
            Oracle(PALETTE), data, tmp_path / "e", samples_per_task=4, protocol=tmp_path / "none"
        )


def test_a_digest_sees_every_input(data):
    batch, _ = next(iter(InputLoader(data, 3, ["referring"])))
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
        evaluate(Oracle(PALETTE), data, tmp_path / "a", samples_per_task=0)
    data.task_ratios = {"entity": 1.0}
    drawer = EmptyFloor()
    drawer.tasks = ("inpainting",)
    with pytest.raises(UnigsError, match="expected pictures of"):
        evaluate(drawer, data, tmp_path / "c", samples_per_task=2)
    data.val_split = "no-such-split"
    with pytest.raises(UnigsError, match="no-such-split"):
        evaluate(Oracle(PALETTE), data, tmp_path / "b", samples_per_task=2)


@pytest.mark.parametrize("field", ["image", "labels", "scores", "float", "nan"])
def test_a_prediction_that_does_not_fit_is_refused(data, tmp_path, field):
    class Wrong(EmptyFloor):
        def __call__(self, batch):
            made = super().__call__(batch)
            parts = {name: getattr(made, name) for name in made.__slots__}
            parts |= {
                "image": {"image": made.image[..., :9]},
                "labels": {"labels": made.labels[:, :9]},
                "scores": {"scores": made.scores[1:]},
                "float": {"image": made.image / 255},
                "nan": {"labels": made.labels + 1, "scores": [[math.nan]] * len(batch)},
            }[field]
            return Prediction(**parts)

    with pytest.raises(UnigsError, match="expected"):
        evaluate(Wrong(), data, tmp_path, samples_per_task=2)


def test_results_of_other_weights_are_never_mixed(data, tmp_path, pipeline):
    options = {"steps": 1, "guidance": 1.0}
    model = PipelinePredictor(pipeline, "ours", **options)
    evaluate(model, data, tmp_path, samples_per_task=1)
    before = fingerprint(pipeline.unet)
    weight = next(pipeline.unet.parameters())
    with torch.no_grad():
        weight.flatten()[0] += 0.01
    try:
        assert fingerprint(pipeline.unet) != before
        with pytest.raises(UnigsError, match="expected results of"):
            evaluate(model, data, tmp_path, samples_per_task=1)
    finally:
        with torch.no_grad():
            weight.flatten()[0] -= 0.01
    other = PipelinePredictor(pipeline, "ours", **options | {"steps": 2})
    with pytest.raises(UnigsError, match="expected results of"):
        evaluate(other, data, tmp_path, samples_per_task=1)
    flagged = UniGSPipeline(**pipeline.components, palette_cells=5, sharpen=True)
    other = PipelinePredictor(flagged, "ours", **options)  # the same weights, told nothing
    with pytest.raises(UnigsError, match="expected results of"):
        evaluate(other, data, tmp_path, samples_per_task=1)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer", "scheduler", "palette"])
def test_results_of_another_part_are_refused_and_it_is_named(data, tmp_path, pipeline, part):
    options = {"steps": 1, "guidance": 1.0}
    evaluate(PipelinePredictor(pipeline, "ours", **options), data, tmp_path, samples_per_task=1)
    parts, settings = dict(pipeline.components), {"palette_cells": 5}
    if part == "palette":
        settings = {"palette_cells": 4}
    elif part == "scheduler":
        parts[part] = type(parts[part]).from_config(parts[part].config, beta_end=0.02)
    else:
        parts[part] = deepcopy(parts[part])
    if part == "tokenizer":
        parts[part].model_max_length = 20
    elif part in ("vae", "text_encoder"):
        with torch.no_grad():
            next(parts[part].parameters()).flatten()[0] += 0.01
    other = PipelinePredictor(UniGSPipeline(**parts, **settings), "ours", **options)
    named = "pipeline.config" if part == "palette" else f"pipeline.{part}"
    with pytest.raises(UnigsError, match=f"expected results of.*parts.{named}"):
        evaluate(other, data, tmp_path, samples_per_task=1)


def test_results_of_another_oracle_are_refused(data, tmp_path, pipeline):
    evaluate(Oracle(PALETTE, pipeline.towers), data, tmp_path, samples_per_task=1)
    towers = deepcopy(pipeline.towers)
    with torch.no_grad():
        next(towers.vae.parameters()).flatten()[0] += 0.01
    with pytest.raises(UnigsError, match=r"parts.towers.vae"):
        evaluate(Oracle(PALETTE, towers), data, tmp_path, samples_per_task=1)
    with pytest.raises(UnigsError, match=r"parts.palette.cells: 3 \(saved 5\)"):
        evaluate(Oracle(Palette(cells=3), pipeline.towers), data, tmp_path, samples_per_task=1)


@pytest.mark.parametrize(
    "models", [["a/pipeline", "b/../a"], ["oracle", "floor-empty", "oracle"], ["x/m", "y/m"]]
)
def test_two_models_of_one_name_are_refused_before_any_is_read(tmp_path, models):
    with pytest.raises(UnigsError, match="different names"):
        evaluate_models(models, [str(tmp_path / "nowhere")], str(tmp_path))


@pytest.mark.parametrize("row", [b'{"index": 3, "ta', b"[]", b"null", b"{}", b"[" * 100_000])
def test_a_damaged_row_names_its_file_and_line(data, tmp_path, row):
    evaluate(EmptyFloor(), data, tmp_path, samples_per_task=1)
    path = tmp_path / "rows-00000.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], row, *lines[2:]]) + b"\n")
    with pytest.raises(UnigsError, match=r"rows-00000.jsonl, line 2"):
        evaluate(EmptyFloor(), data, tmp_path, samples_per_task=1)


def test_the_pipeline_is_asked_for_each_task_by_its_own_conditions(data, pipeline):
    for task in TASKS:
        batch, _ = next(iter(InputLoader(data, 2, [task])))
        made = PipelinePredictor(pipeline, steps=1, guidance=1.0)(batch)
        again = run_batch(pipeline, batch, steps=1, guidance=1.0)
        assert torch.equal(made.labels, again.labels)
        if task == "inpainting":
            keep = ~batch.coarse_mask.expand_as(batch.image)
            assert torch.equal(made.image[keep], batch.image[keep])


def test_a_trainers_test_loop_can_call_it(data, tmp_path, pipeline):
    class Module(L.LightningModule):
        def test_step(self, batch, batch_idx):
            pass

        def on_test_end(self):
            model = PipelinePredictor(pipeline, steps=1, guidance=1.0)
            shared = {"rank": self.global_rank, "world_size": self.trainer.world_size}
            barrier = self.trainer.strategy.barrier
            self.results = evaluate(
                model, data, tmp_path, samples_per_task=1, barrier=barrier, **shared
            )

    module = Module()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, **quiet)
    trainer.test(module, DataLoader([0]), verbose=False)
    assert sorted(module.results["figures"]) == sorted(TASKS)


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
    floor = evaluate(RandomFloor(), data, tmp_path / "floor", **shared)
    assert extractor.seen == 2 * 8 * 2
    extractor.seen = 0
    oracle = evaluate(Oracle(PALETTE), data, tmp_path / "oracle", **shared)
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
    again = evaluate(EmptyFloor(), data, tmp_path / "empty", **shared)
    assert extractor.seen == 8 * 2 + 8
    assert again["figures"]["inpainting"]["all"]["fid"] > 1


def save_tiny_inpainting(base, folder):
    """Stable Diffusion inpainting over the base's towers, in the layout of the hub."""
    from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel

    from unigs.diffusion.base import load_components

    parts = load_components(base)
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config({**parts.unet.config, "in_channels": 9})
    StableDiffusionInpaintPipeline(
        vae=parts.towers.vae,
        text_encoder=parts.towers.text_encoder,
        tokenizer=parts.towers.tokenizer,
        unet=unet,
        scheduler=DDIMScheduler.from_config(parts.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def test_stable_diffusion_inpainting_is_a_predictor(base, data, tmp_path):
    model = load_inpainting(save_tiny_inpainting(base, tmp_path / "sd"), steps=2)
    batch, _ = next(iter(InputLoader(data, 3, ["inpainting"])))
    made = model(batch)
    hole = batch.coarse_mask.expand_as(batch.image)
    assert torch.equal(made.image[~hole], batch.image[~hole])
    assert not torch.equal(made.image[hole], batch.image[hole])
    batch.index[:] = batch.index.flip(0)
    assert not torch.equal(model(batch).image, made.image)
    results = evaluate(model, data, tmp_path / "out", samples_per_task=2)
    assert list(results["figures"]) == ["inpainting"]
    with pytest.raises(UnigsError, match="sd-inpainting=FOLDER"):
        load_inpainting(tmp_path / "absent")


def test_mask2former_is_a_predictor(data, tmp_path):
    model = load_mask2former(save_tiny_mask2former(tmp_path / "judge"))
    results = evaluate(model, data, tmp_path / "out", samples_per_task=2)
    assert sorted(results["figures"]) == ["entity", "referring"]


def test_referring_keeps_named_segments_inside_the_mask():
    labels = torch.tensor([[1, 1, 2, 2, 3, 3]], dtype=torch.int32)
    inside = torch.tensor([[True, True, True, True, True, False]])
    kept, scores = keep_named(
        labels, [0.9, 0.8, 0.7], ["dog", "sky-other-merged", "dog"], "referring: find dog.", inside
    )
    assert kept.tolist() == [[1, 1, 0, 0, 0, 0]]
    assert scores == [0.9]
    kept, _ = keep_named(
        labels, [0.9, 0.8, 0.7], ["dog", "sky-other-merged", "dog"], "referring: find sky.", inside
    )
    assert kept.tolist() == [[0, 0, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    "names", [["dog"], ["dog", "sky"], ["dog", "hot dog", "sky"], list("abcd")]
)
def test_names_are_read_back_from_the_prompt(names):
    assert split_names(write_prompt("referring", names)) == names


def test_weights_of_another_unet_are_no_baseline(base, tmp_path):
    folder = save_tiny_inpainting(base, tmp_path / "sd")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"in_channels": 4}))
    with pytest.raises((UnigsError, RuntimeError)):
        load_inpainting(folder)
