"""One call for four tasks: sizes, conditions, solvers, round trips and errors."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel

from unigs.codec import Palette, decode_dichotomy, encode_colormap
from unigs.noise import draw_noise
from unigs.records import TASKS, UnigsError
from unigs.systems.joint.pipeline import UniGSPipeline
from unigs.systems.joint.predictor import JointPredictor
from unigs.systems.joint.sampler import make_solver, sample_streams
from unigs.systems.pixels import fit_size, resize_labels, resize_pixels
from unigs.systems.sampling import Sampling

PALETTE = Palette(cells=5)
ONCE = {"guidance_scale": 1.0, "entity_guidance_scale": 1.0}  # one pass a step
FAST = {"num_inference_steps": 2, **ONCE}
FIELDS = {field.name for field in fields(Sampling)}


def run(pipeline, task, **call):
    """A call whose options of sampling stand beside its inputs."""
    how = {name: call.pop(name) for name in list(call) if name in FIELDS}
    return pipeline.predict(task, **call, sampling=Sampling(**how))


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(0)
    mask = torch.zeros(2, 1, 48, 70, dtype=torch.bool)
    mask[:, :, 10:30, 20:50] = True
    labels = torch.zeros(2, 48, 70, dtype=torch.int32)
    labels[:, 5:20, 5:40], labels[:, 25:40, 30:60] = 1, 2
    return {
        "image": torch.randint(0, 256, (2, 3, 48, 70), dtype=torch.uint8),
        "coarse_mask": mask,
        "labels": labels,
    }


def conditions(task: str, inputs: dict) -> dict:
    needs = {
        "inpainting": ("image", "coarse_mask"),
        "synthesis": ("labels",),
        "referring": ("image", "coarse_mask"),
        "entity": ("image",),
    }[task]
    prompt = {} if task == "entity" else {"prompt": f"{task}: find star."}
    return {**{name: inputs[name] for name in needs}, **prompt}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("given_stream", ["denoise", "clamp"])
def test_every_task_answers_at_the_size_of_its_input(pipeline, inputs, task, given_stream):
    out = run(pipeline, task, **conditions(task, inputs), given_stream=given_stream, **FAST)
    assert out.image.shape == out.colormap.shape == (2, 3, 48, 70)
    assert out.labels.shape == (2, 48, 70)
    for labels, scores in zip(out.labels, out.scores, strict=True):
        assert labels.max() <= len(scores)
        assert all(0 <= score <= 1 for score in scores)
    if task == "entity":
        assert (out.labels > 0).all()


@pytest.mark.parametrize("task", TASKS)
def test_the_picture_sharpens_masks_only_where_it_is_given(pipeline, inputs, task, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "unigs.systems.joint.pipeline.filter_colormap",
        lambda colormap, image: seen.append(image) or torch.zeros_like(colormap),
    )
    plain, sharp = (
        run(pipeline, task, **conditions(task, inputs), guided_filter=way, **FAST)
        for way in (None, True)
    )
    assert torch.equal(plain.colormap, sharp.colormap)
    if task in ("referring", "entity"):
        assert [image.shape[:2] for image in seen] == [(2, 3)]
        assert sharp.labels.max() <= 1  # decoded from nothing but black
    else:
        assert not seen
        assert torch.equal(plain.labels, sharp.labels)


@pytest.mark.parametrize("task", TASKS)
def test_an_ensemble_averages_colormaps_of_its_noises_where_the_picture_is_given(
    pipeline, inputs, task, monkeypatch
):
    fitting = {name: value[..., :48, :64] for name, value in inputs.items()}
    alone = run(pipeline, task, **conditions(task, fitting), **FAST)
    members = []
    monkeypatch.setattr(
        "unigs.systems.joint.pipeline.sample_streams",
        lambda *args: members.append(sample_streams(*args)) or members[-1],
    )
    out = run(pipeline, task, **conditions(task, fitting), ensemble_size=3, **FAST)
    if task in ("inpainting", "synthesis"):
        assert len(members) == 1
        assert torch.equal(out.image, alone.image)
        return
    painted = [pipeline.towers.decode_latents(streams[:, 4:]).float() for streams in members]
    assert torch.equal(painted[0], alone.colormap.float())
    assert not torch.equal(painted[0], painted[1])
    assert not torch.equal(painted[1], painted[2])
    torch.testing.assert_close(out.colormap.float(), sum(painted) / 3, rtol=0, atol=1)


def test_known_pixels_are_kept(pipeline, inputs):
    out = run(pipeline, "inpainting", **conditions("inpainting", inputs), **FAST)
    keep = ~inputs["coarse_mask"].expand(2, 3, 48, 70)
    assert torch.equal(out.image[keep], inputs["image"][keep])
    assert not torch.equal(out.image, inputs["image"])
    for task in ("referring", "entity"):
        out = run(pipeline, task, **conditions(task, inputs), **FAST)
        assert torch.equal(out.image, inputs["image"])


def test_clamping_returns_the_known_stream(pipeline, inputs):
    """The clamped colormap of a synthesis is the given one, through the VAE."""
    labels = torch.zeros(1, 64, 64, dtype=torch.int32)
    labels[:, 8:40, 8:50] = 1
    out = run(pipeline, "synthesis", labels=labels, prompt="x", given_stream="clamp", **FAST)
    painted = encode_colormap(labels, PALETTE)
    expected = pipeline.towers.decode_latents(pipeline.towers.encode_pixels(painted))
    torch.testing.assert_close(out.colormap, expected, rtol=0, atol=1)


@pytest.mark.parametrize("palette", ["gradient", "random"])
def test_a_model_of_another_palette_paints_and_decodes_with_it(pipeline, palette):
    """Clamped, a synthesis gives its own colormap back, through the VAE."""
    palette = Palette(palette, 5)
    other = UniGSPipeline(**pipeline.components, palette=palette)
    labels = torch.zeros(1, 64, 64, dtype=torch.int32)
    labels[:, 8:40, 8:50] = 1
    out = run(
        other, "synthesis", labels=labels, prompt="x", given_stream="clamp", indices=[3], **FAST
    )
    painted = encode_colormap(labels, palette, seeds=[3])
    expected = other.towers.decode_latents(other.towers.encode_pixels(painted))
    torch.testing.assert_close(out.colormap, expected, rtol=0, atol=1)


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
def test_noise_belongs_to_seed_and_index_not_to_the_batch(pipeline, inputs, solver):
    both = run(pipeline, "entity", image=inputs["image"], indices=[5, 9], solver=solver, **FAST)
    alone = run(pipeline, "entity", image=inputs["image"][1:], indices=[9], solver=solver, **FAST)
    close = (both.colormap[1].int() - alone.colormap[0].int()).abs() <= 1
    assert close.float().mean() > 0.99
    other = run(pipeline, "entity", image=inputs["image"][1:], indices=[10], solver=solver, **FAST)
    assert not torch.equal(other.colormap, alone.colormap)


def test_entities_guide_only_where_they_are_given(pipeline, inputs):
    for task in TASKS:
        call = conditions(task, inputs)
        plain, guided = (
            run(
                pipeline,
                task,
                **call,
                num_inference_steps=2,
                guidance_scale=1.0,
                entity_guidance_scale=scale,
            ).image
            for scale in (1.0, 4.0)
        )
        assert torch.equal(plain, guided) == (task != "synthesis")


def test_export_and_reload_give_the_same_output(pipeline, inputs, tmp_path):
    pipeline.save_pretrained(tmp_path)
    again = UniGSPipeline.load(str(tmp_path))
    first = run(pipeline, "entity", image=inputs["image"], **FAST)
    second = run(again, "entity", image=inputs["image"], **FAST)
    assert torch.equal(first.colormap, second.colormap)
    assert again.palette == PALETTE
    assert not list(tmp_path.rglob("*.bin"))
    UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet")  # loads without our code


def test_samplers_start_at_the_last_training_step(pipeline):
    for solver in ("ddim", "unipc"):
        sampler = make_solver(pipeline.scheduler, solver, 5)
        sampler.set_timesteps(5)
        assert int(sampler.timesteps[0]) == 999


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [((48, 70), None, (48, 64)), ((480, 640), 512, (512, 688)), ((3, 500), None, (16, 496))],
)
def test_the_model_runs_near_the_asked_size_with_the_aspect_kept(size, resolution, expected):
    assert fit_size(*size, resolution, 16) == expected


def test_resizing_to_the_same_size_changes_nothing(inputs):
    assert torch.equal(resize_pixels(inputs["image"], (48, 70)), inputs["image"])
    assert torch.equal(resize_labels(inputs["labels"], (48, 70)), inputs["labels"])
    bigger = resize_labels(inputs["labels"], (96, 140))
    assert torch.equal(resize_labels(bigger, (48, 70)), inputs["labels"])


@pytest.mark.parametrize(
    ("task", "changes", "words"),
    [
        ("dance", {}, "task of"),
        ("entity", {"image": None}, "expected image"),
        ("synthesis", {"labels": None, "prompt": "x"}, "expected labels"),
        ("inpainting", {"coarse_mask": None, "prompt": "x"}, "coarse_mask"),
        ("referring", {"prompt": None}, "expected a prompt"),
        ("entity", {"image": torch.zeros(2, 3, 8, 8)}, "uint8"),
        ("entity", {"num_inference_steps": 7, "solver": "ddim"}, "divide 1000"),
        ("entity", {"ensemble_size": 0}, "1 or more, got 0"),
    ],
)
def test_bad_calls_are_refused_in_words(pipeline, inputs, task, changes, words):
    call = {**inputs, **FAST, **changes}
    with pytest.raises(UnigsError, match=words):
        run(pipeline, task, **call)


def test_a_folder_without_a_pipeline_and_a_stock_pipeline_are_refused(tmp_path, base):
    with pytest.raises(UnigsError, match="unigs export"):
        UniGSPipeline.load(str(tmp_path))
    stock = StableDiffusionInpaintPipeline.from_pretrained(base, safety_checker=None)
    with pytest.raises(UnigsError, match="joint UNet"):
        UniGSPipeline(stock.vae, stock.text_encoder, stock.tokenizer, stock.unet, stock.scheduler)


def watch_passes(pipeline, **call):
    """Every pass of the UNet in a synthesis: input, timestep, words, output."""
    seen = []

    def keep(_, args, named, out):
        seen.append((*args[:2], named["encoder_hidden_states"], out.sample))

    hook = pipeline.unet.register_forward_hook(keep, with_kwargs=True)
    try:
        run(pipeline, "synthesis", prompt="x", **call)
    finally:
        hook.remove()
    return seen


def test_a_clamped_stream_is_its_renoised_truth_at_every_step(pipeline):
    labels = torch.zeros(1, 64, 64, dtype=torch.int32)
    labels[:, 8:40, 8:50] = 1
    seen = watch_passes(
        pipeline, labels=labels, given_stream="clamp", num_inference_steps=3, **ONCE
    )
    truth = pipeline.towers.encode_pixels(encode_colormap(labels, PALETTE))
    noise = draw_noise(0, [0], (8, *truth.shape[-2:]), "sampling")[:, 4:]
    assert len(seen) == 3
    for joined, step, *_ in seen:
        expected = pipeline.scheduler.add_noise(truth, noise, step.expand(1))
        torch.testing.assert_close(joined[:, 4:8], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("given_stream", ["denoise", "clamp"])
def test_guidance_leads_away_from_no_words_and_from_no_entities(
    pipeline, given_stream, monkeypatch
):
    labels = torch.zeros(1, 64, 64, dtype=torch.int32)
    labels[:, 8:40, 8:50] = 1
    estimates = []
    step = DDIMScheduler.step
    monkeypatch.setattr(
        DDIMScheduler, "step", lambda *args, **kw: estimates.append(args[1]) or step(*args, **kw)
    )
    call = {
        "labels": labels,
        "given_stream": given_stream,
        "num_inference_steps": 2,
        "solver": "ddim",
    }
    seen = watch_passes(pipeline, guidance_scale=5.0, entity_guidance_scale=3.0, **call)
    encode = pipeline.towers.encode_pixels
    painted = encode(encode_colormap(labels, PALETTE))
    empty = encode(encode_colormap(torch.zeros_like(labels), PALETTE))
    noise = draw_noise(0, [0], (8, *empty.shape[-2:]), "sampling")[:, 4:]
    assert len(seen) == 6
    for place, (joined, t, words, _) in enumerate(seen):
        known, text = ((painted, "x"), (painted, ""), (empty, ""))[place % 3]
        torch.testing.assert_close(joined[:, 9:], known, rtol=1e-4, atol=1e-4)
        assert torch.equal(words, pipeline.towers.encode_text([text]))
        if given_stream == "clamp":
            stream = pipeline.scheduler.add_noise(known, noise, t.expand(1))
            torch.testing.assert_close(joined[:, 4:8], stream, rtol=1e-4, atol=1e-4)
    everything, wordless, bare = (out[:, :4] for *_, out in seen[:3])
    expected = bare + 3 * (wordless - bare) + 5 * (everything - wordless)
    torch.testing.assert_close(estimates[0][:, :4], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(estimates[0][:, 4:], seen[0][3][:, 4:])


@pytest.mark.parametrize(("scales", "passes"), [((1, 1), 1), ((4, 1), 2), ((3, 3), 2), ((1, 2), 3)])
def test_a_pass_that_weighs_nothing_is_not_made(pipeline, scales, passes):
    labels = torch.ones(1, 64, 64, dtype=torch.int32)
    words, entities = scales
    scales = {"guidance_scale": float(words), "entity_guidance_scale": float(entities)}
    seen = watch_passes(pipeline, labels=labels, num_inference_steps=1, **scales)
    assert len(seen) == passes


def test_the_decoder_is_an_option_of_the_call_and_of_the_folder(pipeline, inputs):
    call = {"image": inputs["image"][..., :48, :64], **FAST}
    refined, plain = (
        run(pipeline, "entity", decoder=name, **call) for name in ("refined", "dichotomy")
    )
    assert torch.equal(refined.colormap, plain.colormap)
    expected = decode_dichotomy(plain.colormap)
    assert torch.equal(plain.labels, expected.labels)
    assert plain.scores == expected.scores
    assert not torch.equal(refined.labels, plain.labels)
    own = {"entity": {"decoder": "dichotomy"}}
    other = UniGSPipeline(**pipeline.components, palette=PALETTE, sampling=own)
    assert torch.equal(run(other, "entity", **call).labels, plain.labels)
    assert torch.equal(run(other, "entity", decoder="refined", **call).labels, refined.labels)


def test_a_prediction_decoded_again_is_that_of_the_other_decoder(pipeline, inputs):
    """With the picture's outlines or without: only the decoder differs."""
    sample = SimpleNamespace(
        image=inputs["image"][..., :48, :64], prompts=[""] * 2, index=torch.tensor([4, 5]),
        task=torch.tensor([TASKS.index("entity")] * 2), to=lambda device: sample,
    )  # fmt: skip
    for filtered in (False, True):
        asked = Sampling(num_inference_steps=1, guided_filter=filtered)
        predictor = JointPredictor(pipeline, sampling=asked)
        other = JointPredictor(pipeline, sampling=replace(asked, decoder="dichotomy"))
        again = predictor.decode_again(sample, predictor(sample), "dichotomy")
        assert torch.equal(again.labels, other(sample).labels)
