"""Other people's models: what they are shown, what they answer, and what is refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from peer_parts import (
    save_tiny_adapter,
    save_tiny_controlnet,
    save_tiny_oneformer,
    save_tiny_sam,
    save_tiny_sd,
)
from test_metrics_generation import save_tiny_mask2former

from unigs.evaluation.baselines import load_named, load_peer
from unigs.evaluation.baselines.colours import TABLE, load_colours
from unigs.evaluation.baselines.diffusion import load_adapter, load_controlnet
from unigs.evaluation.baselines.masks import flatten_masks, load_sam
from unigs.evaluation.options import Scenes
from unigs.evaluation.peers import PEERS, check_peer
from unigs.metrics import segmenter as segmenters
from unigs.metrics.segmenter import find_stuff, fuse_segments, load_segmenter
from unigs.records import TASKS, Batch, UnigsError
from unigs.systems.sampling import Sampling
from unigs.tasks import speak_category
from unigs.verbs.evaluate import evaluate_models, name_model

SIZE = 32


def make_batch(task, names=(("dog", "star"), ("person", "sky"))):
    """Two pictures of two entities each."""
    labels = torch.zeros(2, SIZE, SIZE, dtype=torch.int32)
    labels[:, :16, :16] = 1
    labels[:, 20:, 4:28] = 2
    noise = torch.Generator().manual_seed(0)
    return Batch(
        keys=["a", "b"],
        prompts=["", ""],
        asked=list(names),
        names=list(names),
        seed=0,
        index=torch.arange(2),
        task=torch.full((2,), TASKS.index(task)),
        image=torch.randint(0, 256, (2, 3, SIZE, SIZE), generator=noise).byte(),
        labels=labels,
        ignored=torch.zeros(2, SIZE, SIZE, dtype=torch.bool),
        coarse_mask=torch.ones(2, 1, SIZE, SIZE, dtype=torch.bool),
    )


@pytest.fixture(scope="module")
def sd(base, tmp_path_factory):
    return save_tiny_sd(base, tmp_path_factory.mktemp("peers") / "sd")


@pytest.fixture(scope="module")
def controlnet(sd, tmp_path_factory):
    return save_tiny_controlnet(sd, tmp_path_factory.mktemp("peers") / "controlnet")


@pytest.fixture(scope="module")
def oneformer(base, tmp_path_factory):
    return save_tiny_oneformer(base, tmp_path_factory.mktemp("peers") / "oneformer")


def read_table(palette):
    with TABLE.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["palette"] == palette]


def colour_of(row):
    return tuple(int(row[channel]) for channel in ("red", "green", "blue"))


# --- colours -------------------------------------------------------------------------------------


def test_palettes_are_those_that_the_networks_learnt():
    counts = {name: len(read_table(name)) for name in ("ade20k", "coco", "coco-stuff")}
    assert counts == {"ade20k": 150, "coco": 133, "coco-stuff": 171}
    assert load_colours("ade20k").known["wall"] == (120, 120, 120)
    assert load_colours("ade20k").known["tv"] == (0, 255, 194)
    assert load_colours("coco").known["person"] == (220, 20, 60)
    assert load_colours("coco").known["sky"] == (70, 130, 180)


def test_coco_stuff_is_coloured_by_the_bits_of_its_ids():
    """As PASCAL VOC's colormap: bit 3k + c of the id is bit 7 - k of channel c."""
    left_out = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}  # not annotated in COCO-Stuff
    ids = [number for number in range(1, 183) if number not in left_out]
    for number, row in zip(ids, read_table("coco-stuff"), strict=True):
        bits = f"{number:024b}"[::-1]
        wanted = tuple(sum(int(bits[3 * k + c]) << (7 - k) for k in range(8)) for c in range(3))
        assert colour_of(row) == wanted, row["names"]
    assert [row["names"] for row in read_table("coco-stuff")][-1] == "wood"


def test_a_first_name_goes_before_a_synonym_and_a_synonym_before_our_own_word():
    rows = {row["names"].split(", ")[0]: row for row in read_table("ade20k")}
    known = load_colours("ade20k").known
    for word, first in (
        ("stool", "stool"),
        ("screen", "screen"),
        ("pot", "pot"),
        ("couch", "sofa"),
    ):
        assert known[word] == colour_of(rows[first]), word
    assert known["zebra"] == known["animal"] == colour_of(rows["animal"])


def test_every_class_of_coco_has_a_colour_of_coco_stuff():
    known = load_colours("coco-stuff").known
    assert not [
        row["names"] for row in read_table("coco") if speak_category(row["names"]) not in known
    ]


@pytest.mark.parametrize("palette", ["ade20k", "coco", "coco-stuff"])
def test_unknown_names_get_colours_that_are_no_class_s(palette):
    colours = load_colours(palette)
    taken = {*colours.known.values(), (0, 0, 0)}
    assert len({*colours.spare} - taken) == len(colours.spare) == 8
    labels = torch.tensor([[[0, 1, 2, 3, 4]]])
    (painted,) = colours.paint(labels, [("wibble", "person", "wobble", "wibble")])
    black, first, person, second, again = (tuple(painted[:, 0, k].tolist()) for k in range(5))
    assert black == (0, 0, 0)
    assert person == colours.known["person"]
    assert (first, second, again) == (colours.spare[0], colours.spare[1], colours.spare[0])


# --- models that draw ----------------------------------------------------------------------------


def check_drawing(model, palette):
    batch = make_batch("synthesis")
    made = model(batch)
    assert made.image.shape == batch.image.shape
    assert made.image.dtype == torch.uint8
    assert not made.has_masks
    assert torch.equal(made.colormap, load_colours(palette).paint(batch.labels, batch.names))
    assert torch.equal(model(batch).image, made.image)
    batch.labels = batch.labels.flip(1)
    assert not torch.equal(model(batch).image, made.image), "the class map changes nothing"


def test_controlnet_draws_from_the_colours_of_ade20k_or_coco(sd, controlnet):
    check_drawing(load_controlnet([sd, controlnet], steps=1), "ade20k")
    other = load_peer("controlnet-coco", f"{sd}+{controlnet}", "cpu", True, steps=1, seed=0)
    assert other.name == "controlnet-coco"
    assert other.options["colours"] == "coco"


def test_a_t2i_adapter_draws_from_the_colours_of_coco_stuff(sd, tmp_path):
    adapter = save_tiny_adapter(sd, tmp_path / "adapter")
    check_drawing(load_adapter([sd, adapter], steps=1), "coco-stuff")


def test_an_add_on_of_another_base_or_kind_is_refused(sd, controlnet, base, tmp_path):
    with pytest.raises(UnigsError, match=r"4 channels; got 9; in .*base"):
        load_controlnet([base, controlnet])
    with pytest.raises(UnigsError, match="expected the config of a T2IAdapter, got ControlNet"):
        load_adapter([sd, controlnet])
    sketch = save_tiny_adapter(sd, tmp_path / "sketch", in_channels=1)
    with pytest.raises(UnigsError, match="reads colours, 3 channels; got 1 channels"):
        load_adapter([sd, sketch])


# --- models that segment -------------------------------------------------------------------------


def test_segments_that_follow_a_fused_one_keep_their_own_label():
    """Sky, person, sky again, dog: transformers gives the dog the person's number."""
    segments = [
        {"id": k, "label_id": number, "score": score}
        for k, (number, score) in enumerate([(9, 0.6), (1, 0.9), (9, 0.8), (2, 0.7)], 1)
    ]
    found = {"segmentation": torch.tensor([[0, 1, 2, 3, 4]]), "segments_info": segments}
    labels, kept = fuse_segments(found, {9})
    assert labels.tolist() == [[0, 1, 2, 1, 3]]
    assert kept == [(9, 0.8), (1, 0.9), (2, 0.7)]
    nothing = {"segmentation": torch.full((1, 2), -1.0), "segments_info": []}
    labels, kept = fuse_segments(nothing, {9})
    assert (labels.tolist(), kept) == ([[0, 0]], [])


def check_naming(model):
    for task in model.tasks:
        made = model(make_batch(task, (("class 0",), ("class 1",))))
        assert [len(names) for names in made.names] == [len(scores) for scores in made.scores]
        assert [int(one.max()) for one in made.labels] == [len(scores) for scores in made.scores]
        assert {name for mine in made.names for name in mine} <= {"class 0", "class 1", "class 2"}
    return made


def test_oneformer_names_what_it_finds_and_fetches_nothing(oneformer):
    """Its files name a class file of the hub, which only training needs."""
    stored = json.loads((oneformer / "preprocessor_config.json").read_text())
    assert stored["class_info_file"] == "coco_panoptic.json"
    model = load_named(oneformer, kind="oneformer")
    assert model.segmenter.stuff == {1, 2}
    made = check_naming(model)
    assert any(made.scores)
    check_naming(load_named(oneformer, kind="oneformer-semantic"))


def test_mask2former_is_read_pixel_by_pixel_too(tmp_path):
    folder = save_tiny_mask2former(tmp_path / "mask2former")
    check_naming(load_named(folder, kind="mask2former-semantic"))
    with pytest.raises(UnigsError, match=r"oneformer= FOLDER .*'Mask2FormerForUniversal"):
        load_named(folder, kind="oneformer")
    assert load_named(folder, kind="segmenter").name == "segmenter"


def test_votes_of_queries_are_shares(oneformer):
    model = load_segmenter(oneformer, semantic=True)
    queries = torch.Generator().manual_seed(0)
    outputs = type("Outputs", (), {})()
    outputs.class_queries_logits = torch.randn(1, 5, 4, generator=queries)
    outputs.masks_queries_logits = torch.randn(1, 5, 8, 8, generator=queries)
    shares = model.rate_classes(outputs, 1, (16, 16))
    assert shares.shape == (1, 3, 16, 16)
    assert torch.allclose(shares.sum(1), torch.ones(1, 16, 16))


@pytest.mark.parametrize(("count", "thing", "stuff"), [(133, 79, 80), (150, 12, 0), (19, 11, 10)])
def test_stuff_is_known_by_the_number_of_classes(count, thing, stuff):
    """COCO's toothbrush and banner, ADE20K's person and wall, Cityscapes' person and sky."""
    config = type("Config", (), {"id2label": dict.fromkeys(range(count), "")})()
    found = find_stuff(type("Model", (), {"config": config})(), None)
    assert stuff in found
    assert thing not in found


# --- masks without names -------------------------------------------------------------------------


def test_each_pixel_goes_to_the_mask_of_the_best_score():
    draw = np.random.default_rng(0)
    masks, scores = draw.random((6, 8, 8)) < 0.4, draw.random(6).round(1).tolist()
    masks[5], scores[5] = masks[0] & masks[1], -1.0  # hidden by those it lies in
    labels, kept = flatten_masks(masks, scores)
    assert len(kept) == labels.max() < 6
    for y, x in np.ndindex(8, 8):
        there = [score for mask, score in zip(masks, scores) if mask[y, x]]
        assert (labels[y, x] == 0) == (not there)
        assert not there or kept[labels[y, x] - 1] == max(0.0, *there)
    order = [3, 1, 5, 0, 2, 4]
    again, _ = flatten_masks(masks[order], [scores[k] for k in order])
    assert len(np.unique(np.stack([labels, again]).reshape(2, -1), axis=1).T) == labels.max() + 1
    labels, kept = flatten_masks(np.zeros((0, 4, 4), bool), [])
    assert (labels.max(), kept) == (0, [])


def test_sam_finds_masks_of_more_entities_than_a_palette_has(tmp_path, monkeypatch):
    model = load_sam(save_tiny_sam(tmp_path), points_per_side=2, least_iou=-9, least_stability=0)
    made = model(make_batch("entity"))
    assert made.names is None
    assert [int(one.max()) for one in made.labels] == [len(scores) for scores in made.scores]
    grid = np.eye(SIZE * SIZE, dtype=bool)[:200].reshape(200, SIZE, SIZE)
    monkeypatch.setattr(
        model, "_generator", lambda *_, **__: {"masks": grid, "scores": [0.5] * 200}
    )
    made = model(make_batch("entity"))
    assert [len(scores) for scores in made.scores] == [200, 200]


def test_what_needs_torchvision_says_so(oneformer, tmp_path, monkeypatch):
    monkeypatch.setattr(segmenters, "find_spec", lambda name: None)
    for load in (load_sam, load_named):
        with pytest.raises(UnigsError, match=r"torchvision.*unigs\[eval\]"):
            load(oneformer)


def test_a_folder_of_another_network_is_no_sam(oneformer):
    with pytest.raises(UnigsError, match=r"sam=FOLDER with a SamModel.*'OneFormerFor"):
        load_sam(oneformer)


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "tasks", "told"),
    [
        ("sam=FOLDER/absent", TASKS, r"as FOLDER of sam=FOLDER, got nothing there, at .*absent"),
        ("sam=FOLDER/file", TASKS, "got a file, at .*file"),
        ("sam=runs/absent", TASKS, "got nothing there, at runs/absent"),
        ("sam=", TASKS, r"expected sam=FOLDER, .*got sam=, in --models"),
        ("controlnet=FOLDER", TASKS, r"expected controlnet=BASE\+CONTROLNET, .*in --models"),
        ("controlnet=FOLDER+FOLDER/absent", TASKS, "as CONTROLNET of .*nothing there"),
        ("t2i-adapter=a/b+FOLDER/absent", TASKS, "as ADAPTER of .*nothing there"),
        ("sam=FOLDER", ("referring",), "expected models for referring, got sam.*entity alone"),
        ("sma=FOLDER", TASKS, r"before the equals sign, got sma=.*did you mean sam\?"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_read(model, tasks, told, tmp_path):
    (tmp_path / "file").touch()
    model = model.replace("FOLDER", str(tmp_path))
    with pytest.raises(UnigsError, match=told):
        evaluate_models([model], ["shards"], str(tmp_path / "out"), Scenes(tasks))


def test_an_id_of_the_hub_is_left_to_the_hub_and_a_folder_may_hold_an_equals_sign(tmp_path):
    check_peer("sam", "facebook/sam-vit-huge", ("entity",))
    (tmp_path / "lr=0.1").mkdir()
    assert name_model(str(tmp_path / "lr=0.1")) == "lr=0.1"
    assert [name_model(f"{kind}=a/b") for kind in PEERS] == list(PEERS)


@pytest.mark.slow
def test_peers_stand_in_one_report(sd, controlnet, oneformer, shards, tmp_path):
    scenes = Scenes(
        ("synthesis", "entity"), samples_per_task=2, resolution_px=64, batch_size=2, num_workers=0
    )
    models = [f"controlnet={sd}+{controlnet}", f"oneformer={oneformer}", "floor-empty"]
    evaluate_models(models, [shards], str(tmp_path), scenes, Sampling(num_inference_steps=1))
    figures = {
        path.parent.name: json.loads(path.read_text())["figures"]
        for path in tmp_path.glob("*/results.json")
    }
    assert {name: sorted(tasks) for name, tasks in figures.items()} == {
        "controlnet": ["synthesis"],
        "oneformer": ["entity"],
        "floor-empty": ["entity", "synthesis"],
    }
    assert "miou" not in figures["controlnet"]["synthesis"]["all"], "it finds no masks"
    assert {"miou", "ap", "class_miou"} <= figures["oneformer"]["entity"]["all"].keys()
    report = (tmp_path / "report.md").read_text()
    assert "**controlnet**" in report
    assert "**oneformer**" in report
    assert "controlnet" in (tmp_path / "report.html").read_text()
