"""Models that people bring: every damaged, foreign or misnamed one is refused in words.

And nothing but a typed hub id opens a connection.
"""

from __future__ import annotations

import json
import shutil
import socket
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from unigs.recipes.bases import make_base
from unigs.records import UnigsError, UnigsWarning
from unigs.systems.folders import write_digests
from unigs.systems.joint.base import (
    load_components,
    load_vae,
    locate_base,
    read_hub_id,
    resolve_prediction_type,
)
from unigs.systems.joint.denoiser import is_joint
from unigs.systems.joint.folders import list_files
from unigs.systems.joint.pipeline import UniGSPipeline
from unigs.systems.joint.predictor import JointPredictor
from unigs.systems.joint.single import check_kind, read_pickle, read_weights
from unigs.systems.joint.tokens import write_small_tokenizer
from unigs.systems.load import load_system
from unigs.weights import find_not_finite

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
CONFIGS = ("unet/config.json", "vae/config.json", "text_encoder/config.json",
           "scheduler/scheduler_config.json", "model_index.json")  # fmt: skip
FILES = [*(f"{part}/{name}" for part, name in WEIGHTS.items()), *CONFIGS, "tokenizer/vocab.json"]


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("doors") / "pipeline"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    """A pipeline to damage, without digests, so that each part must notice by itself."""
    shutil.copytree(saved, tmp_path / "copy")
    (tmp_path / "copy" / "digests.json").unlink()
    return tmp_path / "copy"


@pytest.fixture
def copied_base(base, tmp_path) -> Path:
    shutil.copytree(base, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def no_network(monkeypatch):
    """Fails where anything looks up a name or connects; the hub is not said to be offline."""
    import huggingface_hub.constants

    asked = []

    def refuse(*address, **options):
        asked.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield asked
    assert not asked


def load_quietly(folder: Path) -> UniGSPipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnigsWarning)
        return UniGSPipeline.load(str(folder))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- parts ---------------------------------------------------------------------------------------

DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "pointer": lambda data: POINTER.encode(),
    "html": lambda data: b"<html>sign in</html>",
    "missing": None,
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_part_is_named(copied_base, name, kind):
    path = copied_base / name
    if DAMAGE[kind] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGE[kind](path.read_bytes()))
    with pytest.raises(UnigsError) as refused:
        load_components(str(copied_base))
    assert name.split("/")[0] in str(refused.value)
    if kind == "pointer":
        assert "git lfs pull" in str(refused.value)


@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_that_are_not_finite_or_not_all_are_named(copy, part):
    path = copy / part / WEIGHTS[part]
    weights = load_file(path)
    name = sorted(weights)[0]
    bad = {**weights, name: torch.full_like(weights[name], torch.nan)}
    save_file(bad, path, {"format": "pt"})
    with pytest.raises(UnigsError, match="NaN or infinity in"):
        load_quietly(copy)
    del bad[name]
    save_file(bad, path, {"format": "pt"})
    with pytest.raises(UnigsError, match="got none of"):
        load_quietly(copy)


def test_infinity_anywhere_is_found():
    for value in (torch.nan, torch.inf, -torch.inf):
        weight = torch.zeros(7)
        weight[3] = value
        assert find_not_finite([("a", torch.zeros(2)), ("b", weight)]) == "b"
    assert find_not_finite([("a", torch.zeros(0)), ("b", torch.ones(2, dtype=torch.long))]) == ""


def test_weights_beyond_half_precision_are_refused_and_the_old_pipeline_stays(saved, tmp_path):
    target = tmp_path / "out"
    shutil.copytree(saved, target)
    pipe = UniGSPipeline.load(str(saved))
    pipe.unet.conv_in.weight.data[0, 0, 0, 0] = 1e6
    with pytest.raises(UnigsError, match=r"conv_in\.weight.*half precision"):
        JointPredictor(pipe).save(str(target), half=True)
    UniGSPipeline.load(str(target))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- tokenizers ----------------------------------------------------------------------------------


def cut_merges(folder: Path) -> None:
    lines = (folder / "merges.txt").read_text().splitlines()
    (folder / "merges.txt").write_text("\n".join(lines[: len(lines) // 2]) + "\n")


def replace(folder: Path) -> None:
    shutil.rmtree(folder)
    write_small_tokenizer(folder, ["star"])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "vocabulary"),
        (lambda folder: (folder / "vocab.json").unlink(), "vocab.json"),
        (lambda folder: (folder / "merges.txt").unlink(), "merges.txt"),
        (cut_merges, "is merges.txt cut"),
        (replace, "another model"),
        (lambda folder: edit(folder / "tokenizer_config.json", model_max_length=512), "512"),
    ],
)
def test_a_vocabulary_that_is_not_the_encoders_is_an_error(copied_base, harm, words):
    harm(copied_base / "tokenizer")
    with pytest.raises(UnigsError, match=words):
        load_components(str(copied_base))


# --- a pipeline's own record ---------------------------------------------------------------------


def test_one_flipped_bit_of_any_file_is_noticed(saved, tmp_path):
    for name in json.loads((saved / "digests.json").read_text()):
        shutil.copytree(saved, tmp_path / "copy")
        path = tmp_path / "copy" / name
        data = bytearray(path.read_bytes())
        data[-7] ^= 1
        path.write_bytes(data)
        with pytest.raises(UnigsError):
            UniGSPipeline.load(str(tmp_path / "copy"))
        shutil.rmtree(tmp_path / "copy")


def test_a_file_that_was_added_is_noticed_and_a_readme_is_not(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("mine")
    UniGSPipeline.load(str(tmp_path / "copy"))
    (tmp_path / "copy" / "tokenizer" / "added_tokens.json").write_text("{}")
    with pytest.raises(UnigsError, match=r"added_tokens\.json added"):
        UniGSPipeline.load(str(tmp_path / "copy"))


def test_a_folder_of_before_the_digests_loads_with_a_note(copy):
    with pytest.warns(UnigsWarning, match="digests.json"):
        UniGSPipeline.load(str(copy))


@pytest.mark.parametrize(
    "change",
    [
        {"palette": {"kind": "rainbow"}}, {"palette": {"cells": "5"}}, {"palette": {"cells": True}},
        {"palette": {"cells": 10**9}}, {"palette": {"kind": "scaled", "cells": 11}},
        {"palette": {"kind": ["location"]}}, {"palette": {"colour": "red"}}, {"palette": 5},
        {"sampling": {"all": {"guided_filter": 1}}}, {"sampling": {"dance": {}}},
        {"sampling": {"all": {"given_stream": "both"}}}, {"sampling": {"all": {"steps": 3}}},
        {"sampling": {"entity": {"num_inference_steps": 0}}}, {"sampling": 3}, {"colour": "red"},
        {"palette": "rainbow", "palette_cells": 5}, {"palette": "scaled", "palette_cells": 11},
        {"sharpen": 1}, {"given_stream": "both"},
        {"unet": ["os", "system"]}, {"tokenizer": None}, {"_class_name": "Other"},
        {"feature_extractor": ["transformers", "X"]},
    ],
)  # fmt: skip
def test_settings_and_classes_that_are_not_ours_are_refused(copy, change):
    edit(copy / "model_index.json", **change)
    write_digests(copy, list_files(copy))
    with pytest.raises(UnigsError):
        UniGSPipeline.load(str(copy))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("unet", {"block_out_channels": [16, 16, 10**9]}), ("unet", {"layers_per_block": 10**6}),
        ("unet", {"_class_name": "AutoencoderKL"}), ("unet", {"cross_attention_dim": 32}),
        ("vae", {"scaling_factor": 0}), ("vae", {"latent_channels": 16}),
        ("text_encoder", {"num_hidden_layers": 10**9}), ("text_encoder", {"vocab_size": 10}),
    ],
)  # fmt: skip
def test_configs_that_do_not_fit_are_refused(copy, file, change):
    edit(copy / file / "config.json", **change)
    with pytest.raises(UnigsError):
        load_quietly(copy)


# --- the noise -----------------------------------------------------------------------------------


def test_a_bases_own_prediction_type_is_taken_unless_another_is_given(copied_base):
    from unigs.systems import UniGS

    path = copied_base / "scheduler" / "scheduler_config.json"
    edit(path, prediction_type="v_prediction")
    model = UniGS(str(copied_base))
    model.configure_model()
    assert model.scheduler.config.prediction_type == "v_prediction"
    assert (
        model.hparams.objective["prediction_type"] == "v_prediction"
    )  # what a checkpoint remembers
    with pytest.warns(UnigsWarning, match="v_prediction.*epsilon"):
        assert resolve_prediction_type("epsilon", model.scheduler) == "epsilon"


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler"}, {"_class_name": None},
        {"prediction_type": "flow_prediction"}, {"beta_schedule": "none"}, {"beta_end": -1.0},
        {"rescale_betas_zero_snr": True}, {"num_train_timesteps": 0}, {"trained_betas": ["a"]},
        {"trained_betas": 0.5}, {"trained_betas": [0.1, 0.2]},
        {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
    ],
)  # fmt: skip
def test_a_schedule_of_another_process_is_refused(copied_base, change):
    edit(copied_base / "scheduler" / "scheduler_config.json", **change)
    with pytest.raises(UnigsError, match="scheduler"):
        load_components(str(copied_base))


def test_the_noise_of_another_sampler_is_taken_with_a_word(copied_base):
    path = copied_base / "scheduler" / "scheduler_config.json"
    edit(path, _class_name="PNDMScheduler", beta_end=0.02, rescale_betas_zero_snr=True,
         prediction_type="v_prediction")  # fmt: skip
    with pytest.warns(UnigsWarning, match="PNDMScheduler"):
        scheduler = load_components(str(copied_base)).scheduler
    assert scheduler.config.beta_end == 0.02
    assert float(scheduler.alphas_cumprod[-1]) == 0
    with pytest.raises(UnigsError, match="pure noise"):
        resolve_prediction_type("epsilon", scheduler)


# --- single files --------------------------------------------------------------------------------

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
WHOLE = {f"{UNET}input_blocks.0.0.weight": (8, 9, 3, 3), f"{VAE}a": (1,), f"{TEXT}a": (1,)}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"conditioner.embedders.0.a": (1,)}, "Stable Diffusion XL"),
        ({**WHOLE, "cond_stage_model.model.ln_final.bias": (1,)}, "Stable Diffusion 2"),
        ({"lora_unet_down_blocks_0.lora_up.weight": (1,)}, "LoRA"),
        ({"unet.up_blocks.0.to_k.lora_A.weight": (1,)}, "LoRA"),
        ({"encoder.conv_in.weight": (1,)}, "autoencoder alone"),
        ({"down_blocks.0.a": (1,), "conv_in.weight": (1,)}, "UNet of diffusers alone"),
        ({"double_blocks.0.a": (1,)}, "Flux"),
        ({"model_ema.diffusion_modela": (1,), f"{VAE}a": (1,)}, "EMA"),
        ({k: v for k, v in WHOLE.items() if VAE not in k}, "no autoencoder"),
        ({k: v for k, v in WHOLE.items() if TEXT not in k}, "no text encoder"),
        ({f"{VAE}a": (1,)}, "no UNet"),
        ({}, "nothing"),
        ({**WHOLE, f"{UNET}input_blocks.0.0.weight": (8, 5, 3, 3)}, "depth"),
        ({**WHOLE, f"{UNET}input_blocks.0.0.weight": (8, 8, 3, 3)}, "InstructPix2Pix"),
        ({**WHOLE, f"{UNET}input_blocks.0.0.weight": (8,)}, "unknown kind"),
    ],
)
def test_a_single_file_is_told_by_its_tensors(names, said):
    with pytest.raises(UnigsError, match=said):
        check_kind(names, Path("file.safetensors"))


def test_both_kinds_of_whole_files_are_taken():
    for channels in (4, 9):
        name = f"{UNET}input_blocks.0.0.weight"
        assert check_kind({**WHOLE, name: (8, channels, 3, 3)}, Path("file")) == channels


class Marker:
    """Stands for a class of Lightning's in an old checkpoint."""


def test_a_checkpoint_keyed_by_lightnings_classes_is_read_and_other_code_is_not(tmp_path):
    file = tmp_path / "old.ckpt"
    Marker.__module__, Marker.__qualname__ = "pytorch_lightning.callbacks.none", "Marker"
    import sys
    import types

    names = ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.none")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[names[-1]].Marker = Marker
        torch.save({"callbacks": {Marker: {"best": 1.0}}, "state_dict": {"a": torch.ones(1)}}, file)
    assert read_weights(file)["a"].item() == 1

    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").write_text, ("x",))

    torch.save({"state_dict": Evil()}, file)
    with pytest.raises(UnigsError, match="convert it to safetensors"):
        read_pickle(file)
    assert not (tmp_path / "ran").exists()


def test_capitals_in_an_ending_and_any_ending_are_told_by_content(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "A.SAFETENSORS")
    torch.save({"a": torch.ones(1)}, tmp_path / "b.safetensors")
    for name in ("A.SAFETENSORS", "b.safetensors"):
        assert list(read_weights(tmp_path / name)) == ["a"]
    (tmp_path / "c.ckpt").write_bytes(b"\x80\x02}q\x00.old pickle")
    with pytest.raises(UnigsError, match="another format"):
        read_weights(tmp_path / "c.ckpt")


# --- checkpoints ---------------------------------------------------------------------------------


def write_checkpoint(path: Path, **changes) -> str:
    content = {"hyper_parameters": {"base": "x"}, "state_dict": {}, **changes}
    torch.save(content, path)
    return str(path)


def test_a_checkpoint_that_is_none_is_refused_in_words(tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint(path)
    whole = path.read_bytes()
    for data in (b"", whole[: len(whole) // 2], POINTER.encode(), b"\x80\x02}.", b"PK\x03\x04"):
        path.write_bytes(data)
        with pytest.raises(UnigsError, match=r"a\.ckpt"):
            load_system(str(path))
    for content in ([1], {"state_dict": {}}, {"hyper_parameters": 1, "state_dict": {}}):
        torch.save(content, path)
        with pytest.raises(UnigsError, match=r"a\.ckpt"):
            load_system(str(path))


def test_a_checkpoint_with_weights_or_settings_of_others_is_refused(base, tmp_path):
    path = tmp_path / "a.ckpt"
    for settings in (
        {"base": base},
        {"base": base, "colour": 1},
        {"base": base, "palette": {"kind": 3}},
        {},
    ):
        with pytest.raises(UnigsError, match=r"a\.ckpt|shape"):
            load_system(write_checkpoint(path, hyper_parameters=settings))


@pytest.mark.parametrize("named", ["org/name", "hub:org/name", "runs/gone", "/dev/zero", 7, None])
def test_a_checkpoints_base_is_never_fetched(no_network, tmp_path, named):
    path = write_checkpoint(tmp_path / "a.ckpt", hyper_parameters={"base": named})
    with pytest.raises(UnigsError):
        load_system(path)


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["runs/typo", "data/x", "./x", "../org/name", "/abs/x", "a/b/c", "x", "~/m", "here/x", "a\\b",
     "x.safetensors", "hub:x", "hub:a/b/c", "", "\0", "x" * 5000, "http://host/x"],
)  # fmt: skip
def test_a_path_that_is_not_there_is_an_error_and_no_request(
    no_network, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    with pytest.raises(UnigsError):
        load_components(name)
    with pytest.raises(UnigsError):
        UniGSPipeline.load(name)
    with pytest.raises(UnigsError):
        load_vae(name)


def test_a_model_that_ships_is_a_base_unless_a_folder_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = locate_base("tiny")
    assert is_joint(load_components("tiny").unet)
    Path("tiny").mkdir()
    assert locate_base("tiny") == Path("tiny") != shipped


def test_only_a_typed_hub_id_asks_the_hub(tmp_path, monkeypatch, base):
    import huggingface_hub

    asked = []
    monkeypatch.chdir(tmp_path)
    fetch = lambda name, **options: asked.append((name, options["local_files_only"])) or base
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    Path("mine").mkdir()
    for name in ("org/name", "hub:runs/name", "hub:mine/name"):
        assert locate_base(name) == Path(base)
        locate_base(name, download=False)
    names = ["org/name", "runs/name", "mine/name"]
    assert asked == [(name, local) for name in names for local in (False, True)]
    assert read_hub_id("mine/name") is None


def test_a_base_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    out = tmp_path / "base"

    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(UNet2DConditionModel, "save_pretrained", fail)
    with pytest.raises(UnigsError, match="No space"):
        make_base(str(out))
    assert not list(tmp_path.iterdir())
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UnigsError, match=r"mine\.txt"):
        make_base(str(out))
    with pytest.raises(UnigsError, match="a file"):
        make_base(str(out / "mine.txt"))
    assert (out / "mine.txt").read_text() == "mine"
