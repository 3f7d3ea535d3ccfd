"""FID, CLIP score and the Mask2Former judge: references, refusals, and nothing downloaded."""

import json
import os
import stat
import sys

import numpy as np
import pytest
import torch
from peer_parts import tiny_segmenter
from torch import nn

from unigs.files import hash_file
from unigs.metrics.clip_score import ClipScore, load_clip, score_pictures
from unigs.metrics.extras import check_pictures
from unigs.metrics.frechet import (
    FrechetDistance,
    Statistics,
    load_inception,
    measure_frechet,
    read_statistics,
    recall_statistics,
    resize_clean,
    write_statistics,
)
from unigs.metrics.segmenter import load_segmenter
from unigs.records import UnigsError

FEATURES = 6


class TinyExtractor(nn.Module):
    """Means of the picture's quarters, mixed by fixed weights."""

    num_features = FEATURES

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        mix = torch.randn(12, FEATURES, generator=generator, dtype=torch.float64)
        self.register_buffer("mix", mix)

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).double().flatten(1) @ self.mix


def random_pictures(count, seed, size=(20, 28)):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return (torch.nn.functional.interpolate(coarse, size) * 255).to(torch.uint8)


def random_statistics(rng, features, pictures):
    values = rng.normal(size=(pictures, features)) @ rng.normal(size=(features, features))
    return Statistics(values.mean(0), np.cov(values, rowvar=False), pictures), values


@pytest.mark.parametrize(("features", "pictures"), [(4, 300), (64, 500), (64, 40)])
def test_distance_equals_cleanfid(features, pictures):
    frechet = pytest.importorskip("cleanfid.fid").frechet_distance
    rng = np.random.default_rng(features)
    a, _ = random_statistics(rng, features, pictures)
    b, _ = random_statistics(rng, features, pictures)
    expected = frechet(a.mean, a.covariance, b.mean, b.covariance)
    # With fewer pictures than features sqrtm itself is good to six digits only.
    assert measure_frechet(a, b) == pytest.approx(expected, rel=1e-10 if pictures > 64 else 1e-5)
    assert measure_frechet(a, b) == pytest.approx(measure_frechet(b, a), rel=1e-7)
    assert measure_frechet(a, a) == pytest.approx(0, abs=1e-9 * np.trace(a.covariance))


def test_distance_of_diagonal_covariances_is_the_formula():
    rng = np.random.default_rng(0)
    means, spreads = rng.normal(size=(2, 9)), rng.random((2, 9))
    a, b = (Statistics(m, np.diag(s**2), 99) for m, s in zip(means, spreads))
    expected = ((means[0] - means[1]) ** 2).sum() + ((spreads[0] - spreads[1]) ** 2).sum()
    assert measure_frechet(a, b) == pytest.approx(expected, rel=1e-12)


def test_fid_equals_torchmetrics_and_cleanfid_on_the_same_features():
    pytest.importorskip("cleanfid")
    from cleanfid.fid import frechet_distance
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Resized(TinyExtractor):
        def forward(self, images):
            return super().forward(resize_clean(images))

    made, real = random_pictures(40, 1), random_pictures(50, 2)
    ours, theirs = FrechetDistance(TinyExtractor(), FEATURES), FrechetInceptionDistance(Resized())
    for metric in (ours, theirs):
        metric.update(made, real=False)
        metric.update(real, real=True)
    value = float(ours.compute()["fid"])
    assert value > 1
    assert value == pytest.approx(float(theirs.compute()), rel=1e-5)  # torchmetrics answers float32
    features = [TinyExtractor()(resize_clean(x)).double().numpy() for x in (made, real)]
    parts = [part for f in features for part in (f.mean(0), np.cov(f, rowvar=False))]
    assert value == pytest.approx(frechet_distance(*parts), rel=1e-9)


def test_resize_is_cleanfids_own_for_files(tmp_path):
    resizer = pytest.importorskip("cleanfid.resize").make_resizer(
        "PIL", False, "bicubic", (299, 299)
    )
    images = random_pictures(2, 3)
    for image, small in zip(images, resize_clean(images)):
        assert torch.equal(
            small, torch.from_numpy(resizer(image.permute(1, 2, 0).numpy())).permute(2, 0, 1)
        )


def test_fid_over_ranks_and_order():
    pytest.importorskip("cleanfid")
    made, real = random_pictures(30, 4), random_pictures(30, 5)
    values = []
    for ranks in (1, 2, 3):
        metrics = [FrechetDistance(TinyExtractor(), FEATURES) for _ in range(ranks)]
        for rank, metric in enumerate(metrics):
            metric.update(made[rank::ranks].flip(0))
            metric.update(real[rank::ranks], real=True)
        for other in metrics[1:]:
            metrics[0].merge_state(other)
        values.append(float(metrics[0].compute()["fid"]))
    assert values == pytest.approx([values[0]] * 3, rel=1e-9)
    reference = metrics[0].summarise("real")
    fixed = FrechetDistance(TinyExtractor(), FEATURES, reference)
    fixed.update(made)
    assert float(fixed.compute()["fid"]) == pytest.approx(values[0], rel=1e-9)


def test_bfloat16_pictures_do_not_drift():
    pytest.importorskip("cleanfid")
    made, real = random_pictures(64, 6), random_pictures(64, 7)
    exact, rounded, once = (FrechetDistance(TinyExtractor(), FEATURES) for _ in range(3))
    for metric in (exact, rounded, once):
        metric.update(real, real=True)
    exact.update(made)
    half = (made / 255).bfloat16()
    for picture in half.split(4):
        rounded.update(picture)
    once.update((half.float() * 255).round().to(torch.uint8))
    assert float(rounded.compute()["fid"]) == pytest.approx(float(once.compute()["fid"]), rel=1e-9)
    assert float(rounded.compute()["fid"]) == pytest.approx(float(exact.compute()["fid"]), rel=1e-2)


def test_bad_pictures_and_empty_sets_are_refused():
    pytest.importorskip("cleanfid")
    bad = torch.zeros(3, 3, 8, 8)
    bad[1, 0, 0, 0] = float("nan")
    for images, message in (
        (bad, r"NaN or inf; at places \[1\]"),
        (torch.full((1, 3, 8, 8), 1.5), "0..1"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), r"\[B, 3, H, W\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "uint8 or float"),
    ):
        with pytest.raises(UnigsError, match=message):
            check_pictures(images)
    metric = FrechetDistance(TinyExtractor(), FEATURES)
    metric.update(random_pictures(4, 8))
    with pytest.raises(UnigsError, match="two real pictures; got 0"):
        metric.compute()


def test_statistics_are_kept_with_their_checksum(tmp_path):
    statistics, _ = random_statistics(np.random.default_rng(1), 5, 30)
    made = []
    for _ in range(2):
        found = recall_statistics(
            tmp_path, "pictures/network", lambda: made.append(1) or statistics
        )
        assert np.array_equal(found.covariance, statistics.covariance)
    assert made == [1]
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for cut in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UnigsError, match="FID statistics"):
            read_statistics(path)
    write_statistics(path, Statistics(statistics.mean + 1, statistics.covariance, 30))
    changed = dict(np.load(path))
    np.savez(path, **changed | {"sha256": statistics.sha256})
    with pytest.raises(UnigsError, match="sha256"):
        read_statistics(path)


def test_inception_comes_from_a_file_with_the_right_checksum(tmp_path):
    pytest.importorskip("cleanfid")

    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3, 2048)

        def forward(self, x):
            return self.out(x.mean((2, 3)))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = Layers()

        def forward(self, x):
            return self.layers(x)

    network, path = Network(), tmp_path / "any-name.pt"
    torch.jit.script(network).save(path)
    images = resize_clean(random_pictures(2, 9))
    found = load_inception(path, sha256=hash_file(path))(images)
    assert torch.allclose(found, network.layers((images - 128) / 128))
    with pytest.raises(UnigsError, match="sha256"):
        load_inception(path)
    with pytest.raises(UnigsError, match=r"--inception-weights FILE.*got none"):
        load_inception(None)
    with pytest.raises(UnigsError, match="does not exist"):
        load_inception(tmp_path / "absent.pt")


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanfid.resize", None)
    with pytest.raises(UnigsError, match=r"pip install 'unigs\[eval\]'"):
        resize_clean(random_pictures(1, 0))


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    }
    for name, quick in (("tiny-test", False), ("tiny-test-quickgelu", True)):
        (folder / f"{name}.json").write_text(json.dumps(config | {"quick_gelu": quick}))
        open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-test-quickgelu", pretrained_text=False)
    torch.save(model.state_dict(), folder / "weights.pt")
    torch.save(model.state_dict(), folder / "openai-copy.pt")
    mask = model._buffers.pop("attn_mask")  # a constant in OpenAI's archives, as here
    model.__dict__["attn_mask"] = mask
    inputs = {"encode_image": torch.ones(1, 3, 32, 32), "encode_text": torch.ones(1, 77).int()}
    torch.jit.trace_module(model.eval(), inputs).save(folder / "archive.pt")
    return folder, model


def test_clip_score_by_hand(tiny_clip):
    import open_clip
    from PIL import Image

    folder, model = tiny_clip
    clip = load_clip("tiny-test-quickgelu", folder / "weights.pt")
    images, texts = random_pictures(6, 10, (32, 40)), [f"a picture of {n} dogs" for n in range(6)]
    model.eval()
    preprocess = open_clip.image_transform((32, 32), is_train=False)
    by_hand = []
    with torch.no_grad():
        for image, text in zip(images, texts):
            seen = model.encode_image(
                preprocess(Image.fromarray(image.permute(1, 2, 0).numpy()))[None]
            )[0]
            said = model.encode_text(open_clip.tokenize([text]))[0]
            cosine = float(
                seen.double() @ said.double() / seen.double().norm() / said.double().norm()
            )
            by_hand.append(max(100 * cosine, 0))
    assert any(by_hand)
    assert score_pictures(clip, images, texts) == pytest.approx(by_hand, abs=1e-4)
    metric = ClipScore(clip)
    for start in (3, 0):
        metric.update(images[start : start + 3], texts[start : start + 3])
    assert float(metric.compute()["clip_score"]) == pytest.approx(np.mean(by_hand), abs=1e-4)
    assert "100 x cosine, tiny-test-quickgelu, sha256" in metric.description


def test_clip_is_never_loaded_wrongly_or_unasked(tiny_clip):
    folder, _ = tiny_clip
    with pytest.raises(UnigsError, match=r"--clip-weights FILE.*got none"):
        load_clip()
    for name in ("openai-copy.pt", "archive.pt"):
        with pytest.raises(UnigsError, match="QuickGELU"):
            load_clip("tiny-test", folder / name)
        load_clip("tiny-test-quickgelu", folder / name)
    with pytest.raises(UnigsError, match="QuickGELU"):
        load_clip("ViT-B-32", download="openai")
    with pytest.raises(UnigsError, match="backbone of open_clip"):
        load_clip("no-such-backbone", folder / "weights.pt")
    clip = load_clip("tiny-test", folder / "weights.pt")
    with pytest.raises(UnigsError, match="one text per picture"):
        score_pictures(clip, random_pictures(2, 0), ["one"])


def save_tiny_mask2former(folder, classes=3):
    """A random Mask2Former in the layout of the hub."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessorPil,
    )

    torch.manual_seed(0)
    config = Mask2FormerConfig(
        **tiny_segmenter(classes),
        feature_size=32,
        mask_feature_size=32,
    )
    config.id2label = {number: f"class {number}" for number in range(classes)}
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():  # so that the queries, and not "no object", win
        model.class_predictor.bias[-1] = -20.0
        model.class_predictor.weight *= 100
        for name, weight in model.named_parameters():
            if "mask_embedder" in name:
                weight *= 5
    model.save_pretrained(folder)
    Mask2FormerImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 128}, size_divisor=32
    ).save_pretrained(folder)
    return folder


def test_segmenter_reads_a_folder_and_gives_label_maps(tmp_path):
    segmenter = load_segmenter(save_tiny_mask2former(tmp_path / "judge"))
    segmenter.threshold = 0.0
    images = random_pictures(3, 11, (40, 56))
    found = segmenter(images)
    assert found.labels.shape == (3, 40, 56)
    assert found.labels.dtype == torch.int32
    assert int(found.labels.max()) > 0
    for labels, scores, names in zip(found.labels, found.scores, found.names):
        assert int(labels.max()) <= len(scores) == len(names)
        assert all(0 <= s <= 1 for s in scores)
        assert set(names) <= {"class 0", "class 1", "class 2"}
    alone = segmenter(images[1:2])
    assert torch.equal(alone.labels[0], found.labels[1])
    segmenter.stuff = {0, 1, 2}
    assert all(len(set(names)) == len(names) for names in segmenter(images).names)


def test_segmenter_refuses_what_is_not_there(tmp_path):
    with pytest.raises(UnigsError, match="--segmenter FOLDER"):
        load_segmenter(tmp_path)


def test_statistics_of_one_user_can_be_read_by_another(tmp_path):
    old = os.umask(0o022)
    try:
        write_statistics(tmp_path / "fid.npz", Statistics(np.zeros(4), np.eye(4), 3))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "fid.npz").stat().st_mode) == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["fid.npz"]
