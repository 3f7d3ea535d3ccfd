"""The published recipes at their true sizes: one step with random weights (minutes, 16 GB of
memory), and the siblings as shapes.
"""

from __future__ import annotations

import resource
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from test_annotations_pairs import write_ade20k, write_cityscapes
from torch.nn.functional import cross_entropy
from transformers import (
    FlavaImageCodebook,
    FlavaImageCodebookConfig,
    ResNetBackbone,
    ResNetConfig,
    SwinBackbone,
    SwinConfig,
)

from unigs.codec.analog_bits import BitCode
from unigs.recipes.bases import make_base
from unigs.shards import write_shards
from unigs.synthetic import write_clips, write_datasets
from unigs.systems.backbone import STAGES, Backbone, Encoder
from unigs.systems.gss.dalle import DECODER, DallePosterior, Decoder, build_decoder
from unigs.systems.gss.module import measure_pixels
from unigs.systems.gss.prior import MaskigePrior, Prior
from unigs.systems.pix2seq_d.network import BitDenoiser, Network
from unigs.systems.pix2seq_d.objective import Objective, Truth, count_outputs, measure_error
from unigs.verbs.fit import make_cli

CONFIGS = Path(__file__).parents[1] / "configs"
SWIN_L = {
    "embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12,
    "image_size": 384, "out_features": list(STAGES),
}  # fmt: skip


def take_step(names, shards, **changes):
    """One optimiser step of batch 1 by configs, one over the other; prints its peak of memory."""
    quiet = {
        "data.shards": f"[{shards}]",
        "data.loading.global_batch_size": 1,
        "data.loading.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.precision": "32-true",
        "trainer.max_steps": 1,
        "trainer.limit_val_batches": 0,
        "trainer.num_sanity_val_steps": 0,
        "trainer.log_every_n_steps": 1,
        "trainer.logger": "false",
        "trainer.callbacks": "[]",
        "trainer.enable_checkpointing": "false",
        "ckpt_path": "null",
    }
    told = [f"--{name}={value}" for name, value in {**quiet, **changes}.items()]
    files = [word for name in names for word in ("--config", str(CONFIGS / name))]
    started = time.perf_counter()
    cli = make_cli(["fit", *files, *told])
    loss = float(cli.trainer.logged_metrics["train/loss"])
    assert cli.trainer.global_step == 1
    assert 0 < loss < 20
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{names[-1]}: loss {loss:.3f}, {seconds:.0f} s, peak memory {peak:.1f} GiB")
    return cli


@pytest.mark.slow
def test_one_optimiser_step_of_the_full_joint_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_datasets(tmp_path / "data", images=2, val_images=1, size_px=512)
    sets = {name: str(tmp_path / "data" / name) for name in ("coco", "openimages", "entityseg")}
    write_shards(out=str(tmp_path / "shards"), workers=1, **sets)
    make_base(str(tmp_path / "base"), preset="sd15")
    changes = {"model.base": tmp_path / "base", "model.compute.gradient_checkpointing": "true"}
    take_step(["joint.yaml"], tmp_path / "shards", **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "classes", "side"),
    [("ade20k", 150, 512), pytest.param("cityscapes", 19, 384, id="cityscapes-384-of-768-px")],
)
def test_one_optimiser_step_of_the_full_gss(dataset, classes, side, tmp_path, monkeypatch):
    """Swin-L behind DALL-E's posterior. Crops of Cityscapes have half their side."""
    monkeypatch.chdir(tmp_path)
    write = {"ade20k": partial(write_ade20k, with_instances=False), "cityscapes": write_cityscapes}
    write[dataset](tmp_path / "data")
    write_shards(out=str(tmp_path / "shards"), workers=1, **{dataset: tmp_path / "data"})
    SwinBackbone(SwinConfig(**SWIN_L)).save_pretrained(tmp_path / "swin")
    config = FlavaImageCodebookConfig()
    FlavaImageCodebook(config).save_pretrained(tmp_path / "dalle")
    save_file(build_decoder(config, 128).state_dict(), tmp_path / "dalle" / DECODER)
    changes = {
        "model.backbone.source": tmp_path / "swin",
        "model.posterior": tmp_path / "dalle",
        "data.tasks.resolution_px": side,
    }
    names = ["gss.yaml", f"gss-{dataset}.yaml"]
    cli = take_step(names, tmp_path / "shards", **changes)
    assert len(cli.model.painting.table) == classes


@pytest.mark.slow
def test_one_optimiser_step_of_the_full_pix2seq_d_of_pictures_and_over_clips(tmp_path, monkeypatch):
    """The second begins with what the first has learnt."""
    monkeypatch.chdir(tmp_path)
    write_datasets(tmp_path / "data", images=2, val_images=1, size_px=512)
    write_clips(tmp_path / "davis", clips=1, val_clips=1, frames=3, size_px=512)
    sets = {"coco": str(tmp_path / "data" / "coco"), "davis": tmp_path / "davis"}
    write_shards(out=str(tmp_path / "shards"), workers=1, **sets)
    ResNetBackbone(ResNetConfig(out_features=list(STAGES))).save_pretrained(tmp_path / "resnet")
    changes = {"model.network.backbone.source": tmp_path / "resnet"}
    cli = take_step(["pix2seq-d.yaml"], tmp_path / "shards", **changes)
    cli.model.make_predictor().save(str(tmp_path / "model"))
    changes["model.start_from"] = tmp_path / "model"
    names = ["pix2seq-d.yaml", "pix2seq-d-video.yaml"]
    cli = take_step(names, tmp_path / "shards", **changes)
    assert cli.model.denoiser.told.past == 2
    assert cli.model.classes.names == ("object",)


# --- the siblings, as shapes alone: tensors on the meta device hold no numbers ---

PICTURES = 2


def build_meta(kind, *parts, **options):
    with torch.device("meta"):
        return kind(*parts, **options)


def count_millions(module) -> float:
    return round(sum(weight.numel() for weight in module.parameters()) / 1e6, 1)


def read_config(name, overlay=None):
    """A system's arguments in a config, and the side of its pictures, an overlay's perhaps."""
    read = lambda name: yaml.safe_load((CONFIGS / name).read_text())
    sides = [read(one)["data"]["init_args"].get("tasks") for one in (name, overlay) if one]
    side = [one for one in sides if one][-1]["resolution_px"]
    return read(name)["model"]["init_args"], side


def meta_pictures(side):
    return torch.zeros(PICTURES, 3, side, side, dtype=torch.uint8, device="meta")


def test_the_shapes_of_gss_at_its_published_sizes():
    """Swin-L and DALL-E's posterior, on COCO and on Cityscapes."""
    model, _ = read_config("gss.yaml")
    told = Prior(**model["prior"])
    swin = SwinConfig(**SWIN_L).to_dict()
    encoder = build_meta(Encoder, Backbone(**model["backbone"]), config=swin)
    seeing = build_meta(FlavaImageCodebook, FlavaImageCodebookConfig())
    posterior = DallePosterior(seeing, build_meta(Decoder, 8192, 128, 256, 2))
    assert count_millions(encoder) == pytest.approx(195.2, abs=0.3)
    assert (count_millions(seeing), count_millions(posterior.decoder)) == (53.8, 43.8)

    for overlay, classes, cells in ((None, 133, 128), ("gss-cityscapes.yaml", 19, 192)):
        _, side = read_config("gss.yaml", overlay)
        prior = build_meta(MaskigePrior, told, encoder, posterior.size, classes + 1)
        grid = side // told.stride
        assert grid == cells
        features = prior.look(meta_pictures(side))
        codes = posterior.codes(meta_pictures(grid * posterior.stride))
        assert codes.shape == (PICTURES, grid, grid)
        logits = prior.predict(features)
        assert logits.shape == (PICTURES, 8192, grid, grid)
        assert cross_entropy(logits, codes, reduction="none").shape == codes.shape
        truth = torch.zeros(PICTURES, side, side, dtype=torch.int64, device="meta")
        assert measure_pixels(prior.guess(features, (side, side)), truth).shape == (PICTURES,)
        assert posterior.decode(codes).shape == (PICTURES, 3, 2 * side, 2 * side)


def test_the_shapes_of_pix2seq_d_at_its_published_size():
    """ResNet-50, 12 layers of 512, a decoder of 128 channels, 16 bits on half the picture."""
    model, side = read_config("pix2seq-d.yaml")
    backbone = Backbone(**model["network"].pop("backbone"))
    told, code = Network(backbone, **model["network"]), BitCode(**model["code"])
    loss = Objective(**model["objective"]).loss
    resnet = ResNetConfig(out_features=list(STAGES)).to_dict()  # its defaults are the 50
    network = build_meta(BitDenoiser, told, code, count_outputs(loss, code), config=resnet)
    assert count_millions(network.encoder.look) == pytest.approx(23.5, abs=0.1)
    assert count_millions(network.encoder.layers) == pytest.approx(12 * 3.15, abs=0.1)

    grid = (side // told.divisor,) * 2
    features, tokens = network.encode(meta_pictures(side))
    assert features.shape == (PICTURES, 256, *grid)
    assert tokens.shape == (PICTURES, (side // 32) ** 2, 512)
    maps = torch.zeros(PICTURES, *grid, dtype=torch.int64, device="meta")
    bits = torch.zeros(PICTURES, code.channels, *grid, device="meta")
    gamma = torch.zeros(PICTURES, device="meta")
    output = network.denoise(bits, gamma, features, tokens)
    assert output.shape == (PICTURES, 512, *grid)
    truth = Truth(maps, maps, maps == 0)
    error = measure_error(loss, output, truth, (bits, bits), code)
    assert error.shape == maps.shape
