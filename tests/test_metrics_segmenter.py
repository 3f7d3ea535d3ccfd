"""Semantic networks as segmenters: connected areas, their scores, and what a folder must hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from transformers import (
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
)

from unigs.metrics.segmenter import LEAST_SHARE, SemanticSegmenter, load_segmenter, split_classes
from unigs.records import UnigsError


def save_tiny_segformer(folder, kind=SegformerForSemanticSegmentation):
    """A random SegFormer in the layout of the hub; its classes change from place to place."""
    torch.manual_seed(0)
    names = ["dog", "sky-other-merged", "star"]
    config = SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1] * 4,
        sr_ratios=[4, 2, 1, 1], strides=[2, 2, 2, 2], decoder_hidden_size=16,
        id2label=dict(enumerate(names)), label2id={name: k for k, name in enumerate(names)},
    )  # fmt: skip
    model = kind(config)
    if kind is SegformerForSemanticSegmentation:
        torch.nn.init.normal_(model.decode_head.classifier.weight, std=5.0)
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    SegformerImageProcessorPil(size=size).save_pretrained(folder)
    return folder


def random_pictures(count, seed, size):
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (count, 3, 5, 5), generator=generator).float()
    return torch.nn.functional.interpolate(small, size).to(torch.uint8)


def graph_areas(classes):
    """Connected areas as sets of pixels, by a graph whose edges join equal neighbours."""
    height, width = classes.shape
    node = np.arange(height * width).reshape(height, width)
    down, across = classes[1:] == classes[:-1], classes[:, 1:] == classes[:, :-1]
    ends = [
        np.concatenate([node[:-1][down], node[:, :-1][across]]),
        np.concatenate([node[1:][down], node[:, 1:][across]]),
    ]
    graph = coo_array((np.ones(len(ends[0])), ends), shape=(node.size, node.size))
    area_of = connected_components(graph, directed=False)[1]
    return [frozenset(np.flatnonzero(area_of == area)) for area in np.unique(area_of)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("least_px", [0, 2, 5, 1000])
def test_fused_classes_are_one_segment_and_the_others_as_they_were(seed, least_px):
    classes = np.random.default_rng(seed).integers(0, 4, (11, 14))
    fused = {1, 3}
    labels, found = split_classes(classes, least_px, fused)
    apart, kinds = split_classes(classes, least_px)
    for number in range(4):
        whole = classes == number
        mine = [labels == k for k, kind in enumerate(found, 1) if kind == number]
        theirs = [apart == k for k, kind in enumerate(kinds, 1) if kind == number]
        if number in fused:
            theirs = [whole] if whole.sum() >= max(1, least_px) else []
        assert len(mine) == len(theirs)
        assert all((one == other).all() for one, other in zip(mine, theirs))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("least_px", [0, 2, 5, 1000])
def test_areas_are_those_of_the_pixel_graph(seed, least_px):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 2 + seed % 3, (11, 14))
    labels, found = split_classes(classes, least_px)
    mine = [frozenset(np.flatnonzero(labels == k)) for k in range(1, len(found) + 1)]
    assert set(mine) == {area for area in graph_areas(classes) if len(area) >= least_px}
    assert labels.max() == len(found) == len(set(mine))
    assert [int(classes[labels == k][0]) for k in range(1, len(found) + 1)] == found


def test_a_folder_gives_the_networks_own_classes_and_probabilities(tmp_path):
    segmenter = load_segmenter(save_tiny_segformer(tmp_path / "judge"))
    assert isinstance(segmenter, SemanticSegmenter)
    images = random_pictures(3, 1, (40, 56))
    found = segmenter(images)
    assert found.labels.shape == (3, 40, 56)
    assert found.labels.dtype == torch.int32
    rows = list(images.permute(0, 2, 3, 1).numpy())
    inputs = segmenter.processor(images=rows, return_tensors="pt")
    with torch.no_grad():
        outputs = segmenter.model(**inputs)
    maps = segmenter.processor.post_process_semantic_segmentation(outputs, [(40, 56)] * 3, True)
    assert len({name for names in found.names for name in names}) > 1
    for labels, scores, names, one in zip(found.labels, found.scores, found.names, maps):
        assert int(labels.max()) == len(scores) == len(names) > 0
        for label, (score, name) in enumerate(zip(scores, names), 1):
            (number,) = one.segmentation[labels == label].unique().tolist()
            assert segmenter.model.config.id2label[number] == name
            chance = one.segmentation_scores.softmax(0)[number][labels == label].mean()
            assert score == pytest.approx(float(chance), abs=1e-5)
        sizes = [len(a) for a in graph_areas(one.segmentation.numpy())]
        assert sum(size >= LEAST_SHARE * labels.numel() for size in sizes) == len(names)
    alone = segmenter(images[1:2])
    assert torch.equal(alone.labels[0], found.labels[1])


def test_retrained_weights_are_another_judge(tmp_path):
    folder = save_tiny_segformer(tmp_path / "judge")
    first = load_segmenter(folder)
    assert first.name == load_segmenter(folder).name
    assert first.name.startswith("judge ")
    first.model.decode_head.classifier.bias.data += 1
    first.model.save_pretrained(folder)
    assert load_segmenter(folder).name != first.name


def test_other_networks_and_pickles_are_refused(tmp_path):
    folder = save_tiny_segformer(tmp_path / "classifier", SegformerForImageClassification)
    with pytest.raises(UnigsError, match="SegformerForImageClassification"):
        load_segmenter(folder)
    folder = save_tiny_segformer(tmp_path / "judge")
    model = load_segmenter(folder).model
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UnigsError, match="safetensors"):
        load_segmenter(folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"auto_map": {"AutoConfig": "code.Config"}, "model_type": "own"}
    (folder / "config.json").write_text(json.dumps(config | own))
    with pytest.raises(UnigsError, match="--segmenter FOLDER"):
        load_segmenter(folder)
