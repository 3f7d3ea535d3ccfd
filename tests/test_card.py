"""The card of a model's folder, and its upload."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from lightning.pytorch.callbacks import ModelCheckpoint
from test_training import make_data, make_model, make_trainer

from unigs.callbacks import EMA
from unigs.checkpoints import read_checkpoint
from unigs.evaluation.options import Scenes
from unigs.records import UnigsError
from unigs.shards import read_manifests
from unigs.systems.sampling import Sampling
from unigs.verbs.card import find_licence
from unigs.verbs.evaluate import evaluate_models
from unigs.verbs.export import check_push, export_pipeline, push_folder


@pytest.fixture(scope="module")
def checkpoints(base, shards, tmp_path_factory) -> Path:
    """The folder of a run of two steps, with an average of the weights."""
    folder = tmp_path_factory.mktemp("fit")
    saver = ModelCheckpoint(folder, every_n_train_steps=2, filename="{step}")
    trainer = make_trainer(folder, callbacks=[EMA(0.9), saver], limit_val_batches=0, max_steps=2)
    trainer.fit(make_model(base), make_data(shards))
    return folder


def test_a_card_says_what_the_checkpoint_knows(checkpoints, base, shards, tmp_path):
    run, out = tmp_path / "run", tmp_path / "run" / "pipeline"
    shutil.copytree(checkpoints, run / "checkpoints")
    checkpoint = str(run / "checkpoints" / "step=2.ckpt")
    export_pipeline(checkpoint, str(out))
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "unigs"
    assert "unigs" in card.data.tags
    assert card.data.license is None  # a base of random weights
    manifests = read_manifests(shards)
    for name in ("coco-panoptic-train", "openimages-train", "entityseg-train"):
        assert f"{name} ({len(manifests[name])} pictures)" in card.text
    content = read_checkpoint(checkpoint)
    batch = content["unigs_run"]["data.global_batch_size"]
    assert f"| samples seen | {content['global_step'] * batch} |" in card.text
    assert "1 x CPU" in card.text
    assert str(Path(base).parent) not in card.text  # where the base lay is nobody's business
    assert "None yet" in card.text
    recipe = yaml.safe_load(card.text.split("```yaml")[1].split("```")[0])
    assert recipe["model.optimizer.learning_rate"] == 1e-3

    scenes = Scenes(("entity",), 2, resolution_px=64, batch_size=2, num_workers=0)
    one_step = Sampling(num_inference_steps=1)
    evaluate_models([str(out)], [shards], str(run / "eval"), scenes, one_step)
    export_pipeline(checkpoint, str(out))
    text = (out / "README.md").read_text()
    results = json.loads((run / "eval" / "run" / "results.json").read_text())
    low, high = results["intervals"]["entity"]["all"]["miou"]
    told = f"{results['figures']['entity']['all']['miou']:.3f} ± {(high - low) / 2:.3f}"
    assert told in text
    export_pipeline(checkpoint, str(out), ema=False)  # other weights than were evaluated
    assert told not in (out / "README.md").read_text()


def test_the_licence_of_a_base_is_that_of_its_card_or_its_id(tmp_path):
    assert find_licence(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: openrail\n---\n# A base\n")
    assert find_licence(str(tmp_path)) == "openrail"
    (tmp_path / "README.md").write_text("---\n[: no YAML\n---\n")
    assert find_licence(str(tmp_path)) is None
    sd15 = "stable-diffusion-v1-5/stable-diffusion-inpainting"
    assert find_licence(sd15) == find_licence(f"hub:{sd15}") == "creativeml-openrail-m"
    assert find_licence("someone/something") is None


def test_a_push_uploads_the_folder_and_no_pickle(checkpoints, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    monkeypatch.setattr("huggingface_hub.create_repo", lambda repo, **how: asked.update(how))
    upload = lambda **how: asked.update(how) or "https://hub/me/model"
    monkeypatch.setattr("huggingface_hub.upload_folder", upload)
    out = tmp_path / "pipeline"
    export_pipeline(str(checkpoints / "step=2.ckpt"), str(out), push="me/model")
    assert asked["repo_id"] == "me/model"
    assert asked["private"]
    files = [path.relative_to(asked["folder_path"]).as_posix() for path in out.rglob("*.*")]
    kept = set(filter_repo_objects(files, allow_patterns=asked["allow_patterns"]))
    assert kept == set(files)  # all that export writes
    foreign = ["optimizer.pt", "unet/model.bin", "last.ckpt", "a.pkl", "notes.md"]
    assert not list(filter_repo_objects(foreign, allow_patterns=asked["allow_patterns"]))

    def refuse(*args, **how):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.create_repo", refuse)
    with pytest.raises(UnigsError, match=r"whole, at .*no network"):
        push_folder(out, "me/model")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UnigsError, match="HF_TOKEN"):
        check_push("me/model")
    for wrong in ("model", "a/b/c", "me/..", ""):
        with pytest.raises(UnigsError, match="owner/name"):
            check_push(wrong)
