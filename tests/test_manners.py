"""The pipeline as people call it: any form of picture in and out, the exact path beneath."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask

from unigs.records import UnigsError, UnigsWarning
from unigs.systems.joint.folders import fetch_pipeline, is_hub_id
from unigs.systems.joint.manners import gather_asked, to_labels, to_mask, to_pixels, write_words
from unigs.systems.joint.pipeline import UniGSPipeline
from unigs.systems.joint.predictor import JointPredictor
from unigs.systems.sampling import Sampling
from unigs.verbs.request import number_entities, read_mask, read_pixels, read_values

STEPS = {"num_inference_steps": 2}
PIXELS = torch.randint(0, 256, (3, 40, 56), generator=torch.Generator().manual_seed(0)).byte()
ARRAY = PIXELS.movedim(0, -1).numpy()
FORMS = {
    "pil": Image.fromarray(ARRAY),
    "array": ARRAY,
    "floats": ARRAY.astype(np.float32) / 255,
    "tensor": PIXELS,
    "signed": PIXELS.float() / 127.5 - 1,
    "16 bits": ARRAY.astype(">u2"),
    "a view": ARRAY[:, ::-1].copy()[:, ::-1],
    "list": [Image.fromarray(ARRAY)],
    "batch": PIXELS[None],
}


@pytest.fixture(autouse=True)
def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)


def predict(pipeline, task="entity", **call):
    how = Sampling(processing_resolution=pipeline.side_px, **STEPS)
    return pipeline.predict(task, sampling=how, indices=[0], **call)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_picture_gives_the_answer_of_the_exact_path(pipeline, form):
    found = pipeline("entity", FORMS[form], output_type="pt", **STEPS)
    truth = predict(pipeline, image=PIXELS[None])
    assert torch.equal(found.labels[0], truth.labels[0].int())
    assert found.scores == truth.scores
    assert torch.equal((found.colormaps[0] * 255).round().byte(), truth.colormap[0])
    assert torch.equal((found.images[0] * 255).round().byte(), PIXELS)


def test_pictures_of_many_sizes_keep_their_order_and_their_noise(pipeline):
    pictures = [PIXELS, PIXELS[:, :32, :32], PIXELS.flip(-1)]
    found = pipeline("entity", pictures, **STEPS)
    assert [one.shape for one in found.labels] == [(40, 56), (32, 32), (40, 56)]
    how = Sampling(processing_resolution=pipeline.side_px, **STEPS)
    for index, picture in enumerate(pictures):
        alone = pipeline.predict("entity", image=picture[None], sampling=how, indices=[index])
        same = (found.labels[index] == alone.labels[0].numpy()).mean()
        assert same > 0.99  # a batch rounds in another order


def test_output_types_say_the_same_and_a_tuple_is_the_fields(pipeline):
    pil, array, tensor = (
        pipeline("entity", PIXELS, output_type=kind, **STEPS) for kind in ("pil", "np", "pt")
    )
    assert isinstance(pil.images[0], Image.Image)
    np.testing.assert_array_equal(np.asarray(pil.colormaps[0]), (array.colormaps[0] * 255).round())
    assert torch.equal(tensor.labels[0], torch.from_numpy(array.labels[0]))
    images, _, labels, scores, _ = pipeline("entity", PIXELS, return_dict=False, **STEPS)
    assert len(images) == len(labels) == len(scores) == 1
    with pytest.raises(UnigsError, match=r"expected one of pil, np, pt, got 'latent'"):
        pipeline("entity", PIXELS, output_type="latent")


def test_masks_are_read_back_by_pycocotools(pipeline):
    found = pipeline("referring", [PIXELS, PIXELS.flip(-1)], prompt="star", **STEPS)
    rows = found.to_coco(["17.jpg", "23.jpg"])
    assert {row["image_id"] for row in rows} <= {17, 23}
    for row in rows:
        place = [17, 23].index(row["image_id"])
        mask = coco_mask.decode(row["segmentation"]).astype(bool)
        numbers = np.unique(found.labels[place][mask])
        assert len(numbers) == 1
        assert (mask == (found.labels[place] == numbers[0])).all()
    for seen, labels in zip(found.to_panoptic(), found.labels, strict=True):
        assert {row["id"] for row in seen["segments_info"]} >= set(np.unique(labels)) - {0}
    assert all(row["label"] == "star" for rows in found.segments_info for row in rows)
    with pytest.raises(UnigsError, match="expected 2 file names, got 1"):
        found.to_coco(["17.jpg"])


def test_bare_words_get_the_tasks_template_and_whole_prompts_stay():
    assert write_words("referring", "star", 2) == [("referring: find star.", "star")] * 2
    assert write_words("referring", "referring: find it.", 1) == [("referring: find it.", "")]
    assert write_words("entity", None, 1) == [("panoptic: all entities.", "")]
    assert write_words("entity", "panoptic: things.", 1) == [("panoptic: things.", "")]
    for bad in (None, "", "  ", [None]):
        with pytest.raises(UnigsError, match="expected words for synthesis"):
            write_words("synthesis", bad, 1)
    with pytest.raises(UnigsError, match="expected 3 prompts, one per picture, got 2"):
        write_words("synthesis", ["a", "b"], 3)


def test_generators_and_repeats_decide_the_noise(pipeline):
    def draw(seed, **call):
        mask = np.zeros((40, 56), np.uint8)
        mask[10:30, 10:30] = 255
        made = pipeline(
            "inpainting", PIXELS, mask_image=mask, prompt="star", output_type="np",
            generator=seed if seed is None else torch.Generator().manual_seed(seed),
            guidance_scale=1.0, **STEPS, **call,
        )  # fmt: skip
        return made.images

    assert (draw(3)[0] == draw(3)[0]).all()
    assert (draw(3)[0] != draw(4)[0]).any()
    one, other = draw(None, num_images_per_prompt=2)
    assert (one != other).any()
    known = np.ones((40, 56), bool)
    known[10:30, 10:30] = False
    np.testing.assert_array_equal((one * 255).round()[known], ARRAY[known])


def test_a_callback_sees_every_step_and_may_change_the_latents(pipeline):
    seen = []

    def note(pipe, step, timestep, given):
        assert pipe is pipeline
        seen.append((step, float(timestep)))
        return {"latents": torch.zeros_like(given["latents"])}

    still = pipeline("entity", PIXELS, callback_on_step_end=note, num_inference_steps=3)
    assert [step for step, _ in seen] == [0, 1, 2]
    assert sorted((t for _, t in seen), reverse=True) == [t for _, t in seen]
    free = pipeline("entity", PIXELS, num_inference_steps=3)
    assert np.asarray(still.colormaps[0]).std() < np.asarray(free.colormaps[0]).std()


def test_a_scheduler_put_in_its_place_is_honoured(pipeline):
    own = pipeline.scheduler
    before = np.asarray(pipeline("entity", PIXELS, num_inference_steps=4).colormaps[0], int)
    try:
        pipeline.scheduler = EulerDiscreteScheduler.from_config(own.config)
        after = np.asarray(pipeline("entity", PIXELS, num_inference_steps=4).colormaps[0], int)
    finally:
        pipeline.scheduler = own
    assert np.abs(before - after).max() > 0
    again = np.asarray(pipeline("entity", PIXELS, num_inference_steps=4).colormaps[0], int)
    np.testing.assert_array_equal(before, again)


def test_a_picture_far_larger_than_the_model_learnt_is_told_once(pipeline):
    pipeline._told_size = False
    large = torch.zeros(3, 4 * pipeline.side_px, 4 * pipeline.side_px, dtype=torch.uint8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for picture in (PIXELS, large, large):
            pipeline("entity", picture, **STEPS)
    told = [str(one.message) for one in caught if one.category is UnigsWarning]
    assert len(told) == 1
    assert f"about {pipeline.side_px} px" in told[0]


def test_a_folder_loads_by_every_door(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    truth = pipeline("entity", PIXELS, output_type="pt", **STEPS)
    ours = UniGSPipeline.from_pretrained(tmp_path / "model")
    theirs = DiffusionPipeline.from_pretrained(
        tmp_path / "model", custom_pipeline=str(tmp_path / "model"), trust_remote_code=True
    )
    for pipe in (ours, theirs):
        assert isinstance(pipe, UniGSPipeline)
        pipe.set_progress_bar_config(disable=True)
        found = pipe("entity", PIXELS, output_type="pt", **STEPS)
        assert torch.equal(found.labels[0], truth.labels[0])
        assert pipe.sampling == pipeline.sampling
    half = UniGSPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.bfloat16)
    assert half.unet.dtype == half.vae.dtype == half.text_encoder.dtype == torch.bfloat16


def test_a_hub_is_asked_for_an_id_and_never_for_a_path(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda source, **options: asked.append((source, options)) or str(tmp_path),
    )
    assert fetch_pipeline("someone/model", revision="v1") == tmp_path
    assert asked[0][0] == "someone/model"
    assert not any(
        pattern.endswith((".bin", ".ckpt", ".py")) for pattern in asked[0][1]["allow_patterns"]
    )
    assert all(map(is_hub_id, ("a/b", "gpt2")))
    assert not any(map(is_hub_id, ("runs/x/pipeline", "./x", "/x", "~/x", "a b")))
    with pytest.raises(UnigsError, match="runs/no/pipeline"):
        UniGSPipeline.from_pretrained("runs/no/pipeline")


HOLE = {"task": "inpainting", "prompt": "star"}
DRAW = {"task": "synthesis", "prompt": "star", "image": None, "labels": np.ones((4, 4), int)}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"task": "draw"}, "expected a task of .*, got 'draw'"),
        ({"image": None}, "expected image for entity, got none"),
        ({"image": []}, "expected a picture or a label map for entity, got an empty list"),
        ({"task": "synthesis", "image": None, "prompt": "star"}, "expected labels for synthesis"),
        ({"image": "scene.png"}, "expected a PIL picture, an array or a tensor, got str, at image"),
        ({"image": ARRAY / 1}, r"expected pixels in -1..1, as they are float64"),
        ({"image": ARRAY > 9}, r"expected pixels in 0..255, as they are bool, got bool, at image"),
        ({"image": [ARRAY, ARRAY.astype(np.uint16) * 9]}, r"in 0..255, .*uint16, .* at image\[1\]"),
        ({"image": ARRAY.astype(complex)}, "floats or bool, got complex128, at image"),
        ({"image": ARRAY.astype(str)}, "whole numbers, floats or bool, got <U3, at image"),
        ({"image": ARRAY[:4]}, "at most 8 times as long as wide, got 56 x 4 px, at image"),
        ({"image": Image.new("F", (9, 9), 2)}, "picture of floats outside of 0..1 .*, at image"),
        ({"generator": 42}, "expected a torch.Generator, .*, got 42, at generator"),
        ({"prompt": "star"}, "expected no words for entity, .* got 'star', at prompt"),
        ({"labels": ARRAY[..., 0]}, "expected no labels for entity, got ndarray"),
        ({"mask_image": ARRAY[..., 0]}, "expected no mask_image for entity, got ndarray"),
        ({"image": PIXELS[:2]}, r"expected a picture of three colours, .* got \[2, 40, 56\]"),
        ({"num_inference_step": 3}, "did you mean num_inference_steps"),
        ({"num_images_per_prompt": 0}, "expected 1 or more, got 0, at num_images_per_prompt"),
        ({"generator": [torch.Generator()] * 2}, "expected 1 generators, one per answer, got 2"),
        ({"task": "inpainting", "prompt": "x"}, "expected mask_image for inpainting, got none"),
        ({**HOLE, "mask_image": np.zeros((40, 56))}, "with white where to work, got only black"),
        ({**HOLE, "mask_image": np.ones((40, 56))}, "with black where to keep, got only white"),
        ({**HOLE, "mask_image": np.ones((9, 9))}, "56 x 40 px, got 9 x 9 px, at mask_image"),
        ({**HOLE, "mask_image": np.full((40, 56), -1)}, "expected a mask of 0 or more, got -1"),
        ({**HOLE, "mask_image": np.full((40, 56), np.nan)}, "mask not finite .*, at mask_image"),
        ({**HOLE, "mask_image": np.zeros(4)}, r"expected a mask \[H, W\]"),
        ({**HOLE, "mask_image": [np.eye(40, 56)] * 2}, "expected 1 masks, one per picture, got 2"),
        ({**DRAW, "labels": np.ones((4, 4))}, "expected a label map"),
        ({**DRAW, "labels": np.zeros((4, 4), int)}, "synthesise, got only black, 0, at labels"),
        ({**DRAW, "labels": np.ones((4, 40), int)}, "times as long as wide, got 40 x 4 px, at lab"),
        ({**DRAW, "image": ARRAY}, "expected no image for synthesis, got ndarray"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_told_in_words(pipeline, call, words):
    with pytest.raises(UnigsError, match=words):
        pipeline(**{"task": "entity", "image": PIXELS, **call})


def test_masks_are_cut_at_a_half():
    shades = np.array([[0, 127, 128, 255]], np.uint8)
    for given in (
        shades, shades.astype(int), shades.astype(np.uint16) * 257, shades[:, ::-1][:, ::-1],
        shades > 127, shades[None] / 255, Image.fromarray(shades), torch.from_numpy(shades) / 255,
    ):  # fmt: skip
        chosen, told = to_mask(given)
        assert chosen.tolist() == [[False, False, True, True]]
        assert told
    assert to_pixels(Image.fromarray(shades).convert("RGBA")).shape == (3, 1, 4)


def sideways(picture: Image.Image) -> Image.Image:
    picture.getexif()[ExifTags.Base.Orientation] = 6
    return picture


def layer(hole: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([ARRAY, np.where(hole, 0, 255).astype(np.uint8)]))


GREY = ARRAY[..., 0]
PICTURES = {
    "colours": Image.fromarray(ARRAY),
    "16 bits": Image.fromarray(GREY.astype(np.uint16) * 257),
    "floats": Image.fromarray(GREY.astype(np.float32) / 255),
    "palette": Image.fromarray(ARRAY).quantize(9),
    "alpha": layer(GREY > 99),
    "one bit": Image.fromarray(GREY).convert("1"),
    "held by its side": sideways(Image.fromarray(ARRAY)),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_python_reads_pictures_as_the_verbs_read_their_files(tmp_path, kind):
    """As picture, as label map and as mask, saved or opened again."""
    given = PICTURES[kind]
    path = tmp_path / f"given.{'tiff' if given.mode == 'F' else 'png'}"
    given.save(path, exif=given.getexif())
    for picture in (given, Image.open(path)):
        np.testing.assert_array_equal(to_pixels(picture), read_pixels(path))
        if kind == "floats":  # parts of 255 are no numbers of entities
            for read in (lambda one=picture: to_labels(one), lambda: read_values(path)):
                with pytest.raises(UnigsError, match="numbers that are not whole"):
                    read()
        else:
            np.testing.assert_array_equal(to_labels(picture), number_entities(read_values(path)))
        chosen, _ = to_mask(picture)
        np.testing.assert_array_equal(chosen, read_mask(path, chosen.shape))


def test_deep_pictures_keep_their_greys_and_holes_are_where_a_picture_is_transparent():
    for kind in ("16 bits", "floats"):
        np.testing.assert_array_equal(to_pixels(PICTURES[kind])[0], GREY)
    np.testing.assert_array_equal(to_mask(PICTURES["alpha"])[0], GREY > 99)
    np.testing.assert_array_equal(to_pixels(PICTURES["held by its side"])[0], np.rot90(GREY, -1))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.int16, np.uint64, bool])
def test_label_maps_of_any_whole_numbers_name_the_same_entities(kind):
    values = np.array([[0, 1, 0], [1, 1, 0]]).astype(kind)
    for given in (values, values[:, ::-1].copy()[:, ::-1], torch.from_numpy(values)):
        assert to_labels(given).tolist() == [[0, 1, 0], [1, 1, 0]]
    wide = Image.fromarray(np.array([[0, 300], [40_000, 300]], np.uint16))
    assert to_labels(wide).tolist() == [[0, 1], [2, 1]]


def test_one_mask_serves_pictures_of_one_size_alone():
    hole = np.eye(40, 56) > 0
    asked = gather_asked("inpainting", [ARRAY, ARRAY], hole, None, "star", 2, None)
    assert [one.index for one in asked] == [0, 1, 2, 3]
    assert all(torch.equal(one.mask, torch.from_numpy(hole)[None]) for one in asked)
    with pytest.raises(UnigsError, match="32 x 32 px, got 56 x 40 px, at mask_image"):
        gather_asked("inpainting", [ARRAY, ARRAY[:32, :32]], hole, None, "star", 1, None)


def test_a_picture_that_cannot_be_decoded_is_told_in_words(tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(ARRAY).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UnigsError, match=r"expected a readable picture, .*, at image"):
        to_pixels(Image.open(path))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39, 10**400])
@pytest.mark.parametrize("name", ["guidance_scale", "entity_guidance_scale"])
def test_guidance_that_is_not_finite_is_refused(name, value):
    with pytest.raises(UnigsError, match=f"expected a finite number, got .*, at sampling.{name}"):
        Sampling(**{name: value})


@pytest.mark.parametrize(
    "bad", [{"num_inference_steps": 100_000}, {"num_inference_steps": 7, "solver": "ddim"}]
)
def test_steps_that_no_run_can_use_are_refused_before_pictures_are_read(pipeline, bad):
    with pytest.raises(UnigsError, match=r"at sampling\.num_inference_steps"):
        pipeline("entity", "no picture", **bad)
    with pytest.raises(UnigsError, match=r"at sampling\.num_inference_steps"):
        JointPredictor(pipeline, sampling=Sampling(**bad))


def test_what_is_decoded_to_no_finite_pixels_is_told_in_words(pipeline):
    spoil = lambda pipe, step, timestep, given: {"latents": given["latents"] * float("nan")}
    with pytest.raises(UnigsError, match="expected finite pixels, got NaN or infinity"):
        pipeline("entity", PIXELS, callback_on_step_end=spoil, **STEPS)
