"""GSS: laws of painting, posterior, losses and masks; a short fit; folders and checkpoints."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import build_data
from gss_parts import (
    BALL,
    CAT,
    NONE,
    SKY,
    TABLE,
    fit,
    make_batch,
    make_data,
    make_model,
    make_stages,
    make_trainer,
    make_vq,
)  # fmt: skip
from PIL import Image

from unigs.codec.maskige import paint_maskige, read_maskige
from unigs.evaluation.fingerprint import describe_predictor
from unigs.metrics.panoptic import PanopticEntityQuality
from unigs.noise import key_generators
from unigs.recipes.vq import VQ, crop_randomly, measure_reading, paint_randomly, revive_codes
from unigs.records import UnigsError
from unigs.synthetic.scenes import STUFF_IDS, THING_IDS, draw_scene, scene_seed
from unigs.systems import GSS
from unigs.systems.backbone import Backbone, Encoder
from unigs.systems.gss.coder import Coder
from unigs.systems.gss.module import encode_truth, measure_prior, measure_reader
from unigs.systems.gss.painting import (
    Painting,
    average_known,
    choose_painting,
    fill_unknown,
    find_known,
    number_pixels,
)
from unigs.systems.gss.posterior import VQPosterior, load_posterior
from unigs.systems.gss.predictor import GSSPredictor, Settings, load_stages, name_regions
from unigs.systems.gss.prior import MaskigePrior, Prior
from unigs.systems.gss.stages import Seen, Stages
from unigs.systems.gss.windows import Windows
from unigs.systems.load import load_predictor, load_system
from unigs.systems.pixels import to_signed, to_uint8
from unigs.systems.sampling import Sampling
from unigs.tasks import UNKNOWN, ClassTable
from unigs.verbs.sheet import render_sheet

SETTINGS = Settings(side_px=32, least_area=0.01)


# --- painting ---


@pytest.mark.parametrize("kind", ["farthest", "random"])
def test_the_nearest_colour_of_a_painted_map_is_its_class(kind):
    palette = choose_painting(TABLE, kind).palette
    classes = torch.randint(len(TABLE) + 1, (2, 5, 7))
    assert torch.equal(read_maskige(paint_maskige(classes, palette), palette), classes)


def test_background_is_the_class_behind_the_table_and_unnamed_pixels_have_none():
    labels = torch.tensor([[[0, 1, 2, 3]]])
    ignored = torch.tensor([[[False, False, False, False]]])
    batch = make_batch(labels, [("sky", "a thing unheard of", "ball")], ignored)
    assert number_pixels(batch, TABLE).tolist() == [[[NONE, SKY, UNKNOWN, BALL]]]
    batch.ignored[..., 0] = True
    assert number_pixels(batch, TABLE)[0, 0, 0] == UNKNOWN


def test_one_known_pixel_keeps_a_code_and_none_drops_it():
    classes = torch.full((1, 8, 8), UNKNOWN)
    classes[0, 3, 4] = CAT
    assert find_known(classes, 4).tolist() == [[[False, True], [False, False]]]


def test_the_mean_is_of_what_is_known_and_zero_without_any():
    loss = torch.tensor([[[1.0, 5.0]], [[7.0, 9.0]]])
    known = torch.tensor([[[True, False]], [[False, False]]])
    assert average_known(loss, known).tolist() == [1.0, 0.0]


def test_a_fully_labelled_picture_gives_the_auxiliary_head_no_say():
    classes = torch.randint(4, (1, 8, 8))
    assert torch.equal(fill_unknown(classes, torch.randint(4, (1, 8, 8))), classes)
    stages = make_stages()
    targets = [
        encode_truth(stages, classes, torch.full_like(classes, guess), (2, 2)) for guess in (0, 3)
    ]
    assert torch.equal(targets[0][0], targets[1][0])
    assert bool(targets[0][1].all())


def test_unknown_pixels_are_painted_as_the_head_guesses():
    stages = make_stages()
    classes, guess = torch.full((1, 8, 8), BALL), torch.full((1, 8, 8), SKY)
    unknown = classes.clone()
    unknown[..., 4:] = UNKNOWN
    mixed = torch.where(unknown == UNKNOWN, guess, classes)
    codes, known = encode_truth(stages, unknown, guess, (4, 4))
    assert torch.equal(codes, encode_truth(stages, mixed, guess, (4, 4))[0])
    assert known[0, 0].tolist() == [True, True, False, False]


def test_a_painting_survives_json_and_damage_is_named():
    painting = choose_painting(TABLE, "farthest")
    stored = painting.to_json()
    assert Painting.from_json(stored, "here") == painting
    few, equal = stored["colours"][1:], stored["colours"][:2] * 2
    for colours in (few, equal, [[0, 0]] * 4, "red", [[1.5] * 3] * 4):
        with pytest.raises(UnigsError, match=r"expected 4 distinct colours.*at here"):
            Painting.from_json({**stored, "colours": colours}, "here")
    with pytest.raises(UnigsError, match="got 2 distinct of 4, at here"):
        Painting.from_json({**stored, "colours": equal}, "here")


# --- networks ---


def test_codes_decode_to_maskiges_of_their_size_and_never_change_the_posterior():
    posterior = VQPosterior(make_vq()).train()
    assert not posterior.training
    assert not posterior.vq.training
    assert not any(weight.requires_grad for weight in posterior.parameters())
    maskige = torch.randint(256, (2, 3, 8, 12), dtype=torch.uint8)
    codes = posterior.codes(maskige)
    assert codes.shape == (2, 4, 6)
    assert codes.dtype == torch.int64
    assert posterior.decode(codes).shape == maskige.shape
    with pytest.raises(UnigsError, match="expected sides that are multiples of 2, got 7 x 8"):
        posterior.codes(maskige[..., :7, :8])


def test_the_posterior_is_the_stock_models_own_way_through():
    posterior = VQPosterior(make_vq())
    maskige = torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        own = to_uint8(posterior.vq(to_signed(maskige)).sample)
    assert torch.equal(posterior.decode(posterior.codes(maskige)), own)


def test_prediction_with_the_true_codes_is_the_oracle_through_the_posterior():
    stages = make_stages()
    classes = torch.randint(4, (1, 16, 16))
    codes, _ = encode_truth(stages, classes, classes, (8, 8))
    seen = stages.read(codes, torch.ones(1, 8, 8), (16, 16))
    palette = stages.painting.palette
    assert torch.equal(seen.classes, read_maskige(stages.posterior.decode(codes), palette))
    assert torch.equal(seen.sure, torch.ones(1, 16, 16))


def test_windows_do_not_change_with_the_maps_they_saw():
    windows = Windows(8, 2, 2, window=4).eval()
    large, small = torch.rand(1, 8, 9, 9), torch.rand(1, 8, 2, 3)
    before = windows(large)
    assert windows(small).shape == (1, 2, 3, 8)
    assert torch.equal(windows(large), before)


@pytest.mark.parametrize("multi_level", [True, False])
def test_the_prior_has_a_code_per_stride_and_refuses_other_sides(multi_level):
    told = Prior(dim=8, blocks=1, heads=2, window=3, stride=4, multi_level=multi_level)
    prior = MaskigePrior(told, Encoder(Backbone(width=4)), 16, None)
    assert len(prior.levels) == (4 if multi_level else 1)
    image = torch.zeros(2, 3, 32, 48, dtype=torch.uint8)
    assert prior.predict(prior.look(image)).shape == (2, 16, 8, 12)
    with pytest.raises(UnigsError, match="expected sides that are multiples of 4, got 30 x 48"):
        prior.look(image[:, :, :30])


def test_losses_teach_the_prior_and_nothing_frozen():
    stages = make_stages().train()
    image = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    classes = torch.randint(4, (2, 32, 32))
    classes[1] = UNKNOWN
    losses = measure_prior(stages, image, classes)
    assert all(part.shape == (2,) and part[0] > 0 and part[1] == 0 for part in losses.values())
    sum(part.sum() for part in losses.values()).backward()
    assert all(weight.grad is not None for weight in stages.prior.parameters())
    assert all(weight.grad is None for weight in stages.posterior.parameters())


def test_the_reader_alone_is_trained_behind_a_frozen_stage():
    stages = make_stages(reader=True).train()
    before = {name: value.clone() for name, value in stages.state_dict().items()}
    image = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    measure_reader(stages, image, torch.randint(4, (2, 32, 32))).sum().backward()
    assert all(
        (w.grad is None) == (not n.startswith("reader")) for n, w in stages.named_parameters()
    )
    after = stages.state_dict()  # running statistics too
    assert all(torch.equal(after[name], value) for name, value in before.items())


# --- masks ---


def test_things_are_regions_and_stuff_is_one_and_background_none():
    classes = torch.full((1, 32, 32), NONE)
    classes[0, :8], classes[0, 24:] = SKY, SKY  # two areas, one mask
    classes[0, 10:14, :4], classes[0, 10:15, 20:25] = BALL, BALL  # two masks
    sure = torch.full((1, 32, 32), 0.5)
    sure[0, 10:14, :4] = 0.25
    found = name_regions(torch.zeros(1, 3, 32, 32), Seen(classes, classes, sure), TABLE, 1 / 1024)
    labels = found.labels[0]
    assert found.names == [["sky", "ball", "ball"]]
    assert found.scores == [[0.5, 0.5, 0.25]]
    assert labels.dtype == torch.int32
    assert [int((labels == k).sum()) for k in range(4)] == [1024 - 512 - 41, 512, 25, 16]
    assert bool((labels[classes[0] == NONE] == 0).all())


@pytest.mark.parametrize(("least_px", "names"), [(3, ["sky", "ball"]), (4, ["sky"])])
def test_specks_are_no_entities(least_px, names):
    classes = torch.full((1, 64, 64), SKY)
    classes[0, 5, 5:8] = BALL
    seen = Seen(classes, classes, torch.ones(1, 64, 64))
    found = name_regions(torch.zeros(1, 3, 64, 64), seen, TABLE, least_px / 4096)
    assert found.names == [names]
    assert found.labels[0, 5, 5] == (2 if "ball" in names else 0)


def test_a_least_area_that_is_none_is_refused(vq_folder):
    with pytest.raises(UnigsError, match=r"share of 0 to 1, got 40, at model\.least_area"):
        make_model(posterior=vq_folder, least_area=40)


@pytest.mark.parametrize("part", ["prior", "reader"])
def test_logits_that_are_not_finite_are_told_in_words(part):
    stages = make_stages(reader=True).eval()
    with torch.no_grad():
        for weight in getattr(stages, part).parameters():
            weight.fill_(float("nan"))
    with pytest.raises(UnigsError, match=f"expected finite logits, got NaN or infinity, .*{part}"):
        stages(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_the_predictor_refuses_what_it_does_not_know():
    predictor = GSSPredictor(make_stages().eval(), SETTINGS)
    batch = make_batch(torch.zeros(1, 32, 32, dtype=torch.int32), [()])
    prediction = predictor(batch)
    assert predictor.decode_again(batch, prediction, "nearest") is prediction
    with pytest.raises(UnigsError, match="expected a decoder of nearest, got 'dichotomy'"):
        predictor.decode_again(batch, prediction, "dichotomy")
    with pytest.raises(UnigsError, match="got num_inference_steps, seed, at sampling"):
        GSSPredictor(make_stages(), SETTINGS, sampling=Sampling(num_inference_steps=3, seed=1))
    with pytest.raises(UnigsError, match="expected a batch of entity, got referring"):
        predictor(make_batch(batch.labels, [()], task=2))


@pytest.mark.parametrize("reader", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_a_saved_folder_predicts_the_same(tmp_path, reader, half):
    stages = make_stages(reader=reader).eval()
    predictor = GSSPredictor(stages, SETTINGS)
    batch = make_batch(torch.zeros(2, 32, 32, dtype=torch.int32), [(), ()])
    if half:
        stages.half().float()
    predictor.save(str(tmp_path / "out"), half)
    again = load_predictor(str(tmp_path / "out"), name="mine")
    assert (again.name, again.settings) == ("mine", SETTINGS)
    one, two = predictor(batch), again(batch)
    assert torch.equal(one.labels, two.labels)
    assert torch.equal(one.colormap, two.colormap)
    assert one.names == two.names
    assert one.scores == two.scores
    assert not any("auxiliary" in name for name in again.stages.state_dict())
    assert "stages" in describe_predictor(again)


# --- the system ---


def test_a_fit_of_both_stages_with_the_callbacks(shards, vq_folder, tmp_path):
    """FF is trained, validated, tested, saved, exported; FT-W goes on from it."""
    model = make_model(posterior=vq_folder)
    trainer = fit(model, shards, tmp_path)
    assert "val/entity/miou" in trainer.callback_metrics
    posterior = load_posterior(vq_folder).state_dict()
    assert all(torch.equal(posterior[n], w) for n, w in model.stages.posterior.state_dict().items())
    path = str(tmp_path / "a.ckpt")
    trainer.save_checkpoint(path)
    stored = torch.load(path, weights_only=True)
    assert all(name.startswith("trained.") for name in stored["state_dict"])
    trainer.test(model, make_data(shards), ckpt_path=path, verbose=False)

    loaded = load_system(path)
    averaged, live = (load_system(path, ema).trained.state_dict() for ema in (True, False))
    assert averaged.keys() == live.keys()
    assert any(not torch.equal(averaged[name], live[name]) for name in live)
    assert all(torch.equal(loaded.trained.state_dict()[name], averaged[name]) for name in live)
    loaded.make_predictor().save(str(tmp_path / "ff"))
    render_sheet(str(tmp_path / "ff"), [shards], str(tmp_path / "sheet.png"), per_task=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (sheet.width // 128, sheet.height // 128) == (5, 2)

    reader = make_model(variant="FT-W", start_from=str(tmp_path / "ff"))
    trainer = fit(reader, shards, tmp_path / "second")
    stage, _ = load_stages(str(tmp_path / "ff"))
    frozen = reader.stages.prior.state_dict()
    assert all(torch.equal(frozen[name], w) for name, w in stage.prior.state_dict().items())
    trainer.save_checkpoint(tmp_path / "b.ckpt")
    load_system(str(tmp_path / "b.ckpt")).make_predictor().save(str(tmp_path / "ft-w"))
    assert load_predictor(str(tmp_path / "ft-w")).stages.reader is not None


def test_a_checkpoint_of_other_classes_colours_or_posterior_is_refused(shards, vq_folder, tmp_path):
    model = make_model(posterior=vq_folder)
    trainer = make_trainer(tmp_path)
    trainer.fit(model, make_data(shards))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)
    other = make_model(posterior=vq_folder)
    other.remember(choose_painting(TABLE, "farthest"), 32)
    with pytest.raises(UnigsError, match=r"expected the model's .* classes; got 3"):
        other.on_load_checkpoint(stored)
    other = make_model(posterior=vq_folder)
    other.remember(choose_painting(model.painting.table, "random"), 32)
    with pytest.raises(UnigsError, match="expected the checkpoint's colours"):
        other.on_load_checkpoint(stored)
    torch.manual_seed(1)
    make_vq().save_pretrained(tmp_path / "vq")
    with pytest.raises(UnigsError, match=r"expected the frozen weights .* at .*vq"):
        load_system(str(tmp_path / "a.ckpt"), base=str(tmp_path / "vq"))
    assert load_system(str(tmp_path / "a.ckpt"), base=vq_folder).side_px == 32


def test_a_missing_folder_or_another_task_is_named(shards, vq_folder, tmp_path):
    with pytest.raises(UnigsError, match=r"expected a folder for FF, .* at model.posterior"):
        GSS()
    with pytest.raises(UnigsError, match=r"expected a folder for FT-W, .* at model.start_from"):
        GSS(posterior=vq_folder, variant="FT-W")
    with pytest.raises(UnigsError, match=r"none/config.json"):
        make_trainer(tmp_path).fit(make_model(posterior=str(tmp_path / "none")), make_data(shards))
    second = make_model(variant="FT-W", start_from=str(tmp_path / "none"))
    with pytest.raises(UnigsError, match=r"none/model_index.json"):
        make_trainer(tmp_path).fit(second, make_data(shards))
    with pytest.raises(UnigsError, match=r"expected entity alone, got .*referring"):
        make_trainer(tmp_path).fit(make_model(posterior=vq_folder), build_data(shards))


# --- the recipe of the posterior ---


def test_dead_codes_move_onto_latents_and_used_ones_stay():
    codebook, cells = torch.zeros(4, 2), torch.full((9, 2), 7.0)
    used = torch.tensor([True, False, True, False])
    revive_codes(codebook, used, cells, torch.Generator())
    assert codebook[:, 0].tolist() == [0, 7, 0, 7]


def test_random_maskiges_keep_shapes_and_crops_are_squares():
    torch.manual_seed(0)
    labels = torch.randint(3, (2, 8, 8), dtype=torch.int32)
    palette, keyed = choose_painting(TABLE, "farthest").palette, key_generators(0, [0, 1], "x")
    maskige = paint_randomly(labels, palette, keyed)
    for k in range(3):
        colours = maskige[1].movedim(0, -1)[labels[1] == k]
        assert len(colours.unique(dim=0)) == 1
    assert crop_randomly(maskige, 4, keyed[0]).shape == (2, 3, 4, 4)
    assert torch.equal(crop_randomly(maskige, 20, keyed[0]), maskige)


def test_reading_costs_nothing_of_right_colours_and_much_of_others():
    palette = choose_painting(TABLE, "farthest").palette
    classes = torch.arange(len(palette)).repeat(2, 1)[:, None]  # [2, 1, K]
    pixels = to_signed(paint_maskige(classes, palette))
    right = measure_reading(pixels, classes, palette)
    halfway = measure_reading((pixels + pixels.roll(1, -1)) / 2, classes, palette)
    wrong = measure_reading(pixels.roll(1, -1), classes, palette)
    assert right < 1e-3 < 0.5 < halfway < wrong


def test_latents_stay_as_they_are_until_the_codebook_begins(monkeypatch):
    model = VQ(total_steps=8, quantize_after=4)
    latents = torch.randn(1, 16, 2, 2)
    for step, same in ((3, True), (4, False)):
        monkeypatch.setattr(VQ, "global_step", step)
        assert torch.equal(model.quantize(latents)[0], latents) is same


def test_the_recipe_saves_a_small_posterior_that_loads(shards, tmp_path):
    out = tmp_path / "vq"
    model = VQ(total_steps=2, enlarge=1, crop_px=16, quantize_after=0, out=str(out))
    trainer = make_trainer(tmp_path)
    trainer.fit(model, make_data(shards))
    assert trainer.callback_metrics["train/used"] == 0  # none was, before the first step
    assert sum(file.stat().st_size for file in out.iterdir()) < 4 * 2**20
    posterior = load_posterior(str(out))
    assert (posterior.stride, posterior.size) == (4, 512)


# --- learning ---


SCENE_TABLE = ClassTable(
    tuple(sorted([*THING_IDS, *STUFF_IDS])),
    tuple(name in THING_IDS for name in sorted([*THING_IDS, *STUFF_IDS])),
)


def draw_batch(count: int):
    scenes = [
        draw_scene(scene_seed("train", index), 64, max_things=3, max_stuff=2, min_radius=0.1)
        for index in range(count)
    ]
    labels = torch.stack([torch.from_numpy(scene.labels).int() for scene in scenes])
    names = [[one.category for one in scene.entities] for scene in scenes]
    images = torch.stack([torch.from_numpy(scene.image).movedim(-1, 0) for scene in scenes])
    return replace(make_batch(labels, names), image=images)


@pytest.mark.slow
def test_it_overfits_sixteen_scenes():
    """Through the posterior that ships; most of what is lost is things of a class that touch."""
    batch, table = draw_batch(16), SCENE_TABLE
    torch.manual_seed(0)
    prior = MaskigePrior(
        Prior(dim=64, blocks=2, heads=4, window=7, stride=2),
        Encoder(Backbone(width=32, enlarge=2)), 512, len(table) + 1,
    )  # fmt: skip
    stages = Stages(prior, Coder(load_posterior("vq"), choose_painting(table, "farthest")))
    classes = number_pixels(batch, table)
    steps = 300
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * min((step + 1) / 30, 1, 2 * (1 - step / steps))
        losses = measure_prior(stages, batch.image, classes)
        loss = 0.8 * losses["codes"].mean() + 0.2 * losses["pixels"].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
    found = GSSPredictor(stages.eval(), Settings(64, 0.004))(batch)
    quality = PanopticEntityQuality()
    quality.update(found.labels, batch.labels, batch.ignored)
    assert float(quality.compute()["pq"]) > 0.8
