"""The small autoencoder: trains, saves, and holds the ceiling it ships with."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from builders import build_data

from unigs.codec import Palette, decode_colormap, encode_colormap
from unigs.metrics.segmentation import EntityQuality
from unigs.recipes.autoencoder import Autoencoder, edge_loss
from unigs.synthetic import draw_scene, scene_seed
from unigs.systems.joint.base import load_vae
from unigs.systems.joint.presets import AUTOENCODER
from unigs.systems.pixels import to_signed, to_uint8
from unigs.tasks import TaskOptions


@pytest.fixture(scope="module")
def vae():
    return load_vae(str(AUTOENCODER))


def test_the_shipped_autoencoder_is_small_and_stock(vae):
    files = list(AUTOENCODER.iterdir())
    assert sum(file.stat().st_size for file in files) < 4 * 2**20
    assert {file.suffix for file in files} == {".json", ".safetensors", ".md"}


@pytest.fixture(scope="module")
def scenes() -> torch.Tensor:
    """Label maps int32 [100, 64, 64]; test scenes, which it never saw."""
    labels = [draw_scene(scene_seed("test", i), 64).labels.astype("int32") for i in range(100)]
    return torch.stack([torch.from_numpy(one) for one in labels])


@pytest.mark.parametrize(("drawn", "ceiling"), [(None, 0.80), (2, 0.94)])
def test_truth_through_palette_autoencoder_and_decoder_reaches_its_ceiling(
    vae, scenes, drawn, ceiling
):
    """All entities, or two of them on black."""
    labels, palette = scenes.clone(), Palette(cells=7)
    if drawn:
        labels[labels > drawn] = 0
    with torch.no_grad():
        passed = vae(to_signed(encode_colormap(labels, palette))).sample
    mode = "foreground" if drawn else "entity"
    quality = EntityQuality()
    quality.update(decode_colormap(to_uint8(passed), palette, mode=mode).labels, labels)
    assert quality.compute()["miou"] > ceiling


def test_latents_have_unit_spread(vae):
    pictures = [draw_scene(scene_seed("test", i), 64).image for i in range(16)]
    pixels = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pictures])
    with torch.no_grad():
        latents = vae.encode(to_signed(pixels)).latent_dist.mode() * vae.config.scaling_factor
    assert 0.5 < latents.std() < 2


def test_edge_loss_sees_borders_and_not_levels():
    picture = torch.rand(1, 3, 8, 8)
    assert edge_loss(picture + 0.3, picture) < 1e-6
    assert edge_loss(torch.nn.functional.avg_pool2d(picture, 3, 1, 1), picture) > 0.01


@pytest.mark.parametrize("freeze", [False, True])
def test_training_saves_a_folder_that_loads_and_can_be_gone_on_from(shards, tmp_path, freeze):
    """With the encoder frozen the latents stay what they were, to the bit."""
    data = build_data(
        shards, tasks=TaskOptions(32), global_batch_size=2, steps_per_epoch=1, num_workers=0,
        samples_per_task=1, batch_size=1,
    )  # fmt: skip
    out = str(tmp_path / "vae")
    model = Autoencoder(
        total_steps=2, start_from=str(AUTOENCODER), freeze_encoder=freeze, latent_noise=0.2, out=out
    )
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, data)
    before, after = load_vae(str(AUTOENCODER)), load_vae(out)
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = [vae.encode(pixels).latent_dist.mode() for vae in (before, after)]
        pictures = [vae.decode(latents[0]).sample for vae in (before, after)]
    assert torch.equal(*latents) == freeze
    assert not torch.equal(*pictures)
    assert after.config.scaling_factor > 0
    if freeze:
        assert after.config.scaling_factor == before.config.scaling_factor
