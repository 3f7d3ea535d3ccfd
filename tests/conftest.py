"""Tiny real components, made once: data sets, shards, a base folder, a pipeline."""

from __future__ import annotations

import os

import bytecode  # noqa: F401 (before anything large is imported)

# isort: split
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import multiprocessing.process
import signal

import numpy as np
import pytest
import torch
from hypothesis import settings

from unigs.records import Annotated, Entity

settings.register_profile("unigs", deadline=None)  # a loaded machine is not a wrong program
settings.load_profile("unigs")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # two test processes share two cores


@pytest.fixture
def interrupted_at_birth(monkeypatch) -> None:
    """A process that we fork gets the terminal's interrupt before its first line."""
    run = multiprocessing.process.BaseProcess.run

    def run_interrupted(process: multiprocessing.process.BaseProcess) -> None:
        # A job in the background, as a suite may be, ignores it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGINT)
        run(process)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "run", run_interrupted)


def make_annotated(
    labels: np.ndarray, names: list[str], unlabelled="background", key="a", **flags
) -> Annotated:
    """A picture whose red channel is its label, with the given categories."""
    from io import BytesIO

    from PIL import Image

    pixels = np.zeros((*labels.shape, 3), np.uint8)
    pixels[..., 0] = labels * 20
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    crowds = flags.get("crowds", ())
    entities = tuple(
        Entity(k, name, str(k), str(k), is_crowd=k in crowds) for k, name in enumerate(names, 1)
    )
    return Annotated(
        key, buffer.getvalue(), labels.astype(np.uint16), entities, unlabelled, "made-up"
    )


@pytest.fixture(scope="session")
def vq_folder(tmp_path_factory) -> str:
    """A tiny first stage of GSS, of random weights."""
    from gss_parts import make_vq

    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("vq") / "vq")
    make_vq().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> str:
    """Shards of a small synthetic data set in all three layouts, 64 px."""
    from unigs.shards import write_shards
    from unigs.synthetic import write_datasets

    root = tmp_path_factory.mktemp("shards")
    write_datasets(root / "data", images=12, val_images=6, size_px=64)
    sets = {name: str(root / "data" / name) for name in ("coco", "openimages", "entityseg")}
    write_shards(out=str(root / "out"), samples_per_shard=5, workers=1, **sets)
    return str(root / "out")


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    """A base folder with a very small UNet and VAE in the true layout."""
    from unigs.recipes.bases import make_base
    from unigs.systems.joint.presets import PRESETS

    folder = tmp_path_factory.mktemp("base") / "base"
    saved = PRESETS["tiny"]
    small = {
        **saved,
        "unet": {**saved["unet"], "block_out_channels": (16, 16, 32), "attention_head_dim": 2},
    }
    PRESETS["tiny"] = small
    try:
        make_base(str(folder))
    finally:
        PRESETS["tiny"] = saved
    return str(folder)


@pytest.fixture(scope="session")
def pipeline(base):
    """A joint pipeline over the small base, with random weights in the new channels too."""
    from unigs.codec import Palette
    from unigs.systems.joint.base import load_components
    from unigs.systems.joint.denoiser import widen_unet
    from unigs.systems.joint.pipeline import UniGSPipeline

    parts = load_components(base)
    unet = widen_unet(parts.unet)
    torch.manual_seed(1)
    for weight in (unet.conv_out.weight, unet.conv_in.weight, unet.class_embedding.weight):
        torch.nn.init.normal_(weight, std=0.1)
    towers = parts.towers
    pipe = UniGSPipeline(
        towers.vae, towers.text_encoder, towers.tokenizer, unet, parts.scheduler, Palette(cells=5)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
