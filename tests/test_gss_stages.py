"""GSS' first stage: what FT, TF and TT learn, their folders, and the priors before them."""

from __future__ import annotations

import pytest
import torch
from gss_parts import (
    TABLE,
    fit,
    make_batch,
    make_data,
    make_model,
    make_stages,
    make_trainer,
    make_vq,
)

from unigs.noise import draw_gumbel
from unigs.recipes.maskige import Maskige
from unigs.records import UnigsError
from unigs.systems.gss.coder import Coder, load_coder, save_coder
from unigs.systems.gss.module import encode_truth, measure_prior
from unigs.systems.gss.painting import choose_painting, keep_colours
from unigs.systems.gss.posterior import VQPosterior, load_posterior
from unigs.systems.gss.predictor import load_stages
from unigs.systems.gss.readers import ConvReader
from unigs.systems.load import load_predictor, load_system
from unigs.systems.pixels import resize_labels, to_signed
from unigs.tasks import UNKNOWN


def make_recipe(vq_folder, folder, variant, steps=2) -> Maskige:
    torch.manual_seed(0)
    out = str(folder / variant)
    return Maskige(vq_folder, variant, 0.1, steps + 1, enlarge=1, out=out)


# --- through the posterior ---


def test_a_sure_draw_is_the_best_code_and_pixels_get_a_gradient():
    torch.manual_seed(0)
    posterior = VQPosterior(make_vq())
    maskige = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    pixels = to_signed(maskige).requires_grad_()
    noise = draw_gumbel(0, [3, 4], (16, 4, 4), "codes")
    posterior.pass_through(pixels, noise).sum().backward()
    assert bool(pixels.grad.abs().sum() > 0)
    assert all(weight.grad is None for weight in posterior.parameters())
    score = posterior.score
    drawn = posterior.codes(maskige), (posterior.score(pixels) + noise).argmax(1)
    assert not torch.equal(*drawn)
    posterior.score = lambda pixels: 1e6 * score(pixels)  # no noise reaches so far
    drawn = posterior.pass_through(pixels, noise).clamp(-1, 1)
    best = to_signed(posterior.decode(posterior.codes(maskige)))
    assert torch.allclose(drawn, best, atol=1.01 / 255)


def test_equal_learnt_colours_part_and_others_stay():
    colours = torch.tensor([[255, 0, 255], [9, 9, 9], [255, 0, 255], [255, 0, 255]])
    kept = keep_colours(TABLE, colours.byte()).colours
    assert kept[:2] == ((255, 0, 255), (9, 9, 9))
    assert len(set(kept)) == 4
    assert max(abs(a - b) for one in kept[2:] for a, b in zip(one, kept[0])) == 2


@pytest.mark.parametrize("reader", [False, True])
def test_a_ceiling_is_what_true_codes_are_read_as(reader):
    stages = make_stages(reader=reader).eval()
    classes = torch.randint(4, (2, 16, 16))
    codes, _ = encode_truth(stages, classes, classes, (16, 16))
    seen = stages.read(codes, torch.ones(2, 16, 16), (16, 16))
    assert torch.equal(stages.reconstruct(classes, 2), seen.classes)


@pytest.mark.parametrize("auxiliary", [True, False])
def test_without_the_head_unknown_pixels_are_background(auxiliary):
    stages = make_stages().train()
    if not auxiliary:
        stages.prior.auxiliary = None
    image = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8)
    classes = torch.randint(3, (1, 16, 16))
    classes[..., 8:] = UNKNOWN
    painted, encode = [], stages.encode
    stages.encode = lambda maps: painted.append(maps) or encode(maps)
    fill = torch.full_like(classes, len(TABLE))
    with torch.no_grad():
        losses = measure_prior(stages, image, classes)
        if auxiliary:
            fill = stages.prior.guess(stages.prior.look(image), (16, 16)).argmax(1)
            assert not bool((fill == len(TABLE)).all())
    assert losses.keys() == ({"codes", "pixels"} if auxiliary else {"codes"})
    expected = torch.where(classes == UNKNOWN, fill, classes)
    assert torch.equal(painted[0], resize_labels(expected, (8, 8)))


# --- the recipe ---


@pytest.mark.parametrize("variant", ["FT", "TF", "TT"])
def test_a_stage_that_learns_and_the_prior_before_it(variant, shards, vq_folder, tmp_path):
    """Learns what its letters say; a folder; a prior on it, saved, exported, read back."""
    recipe = make_recipe(vq_folder, tmp_path, variant)
    make_trainer(tmp_path).fit(recipe, make_data(shards))
    coder, named = load_coder(recipe.hp.out)
    table = coder.painting.table
    fresh = ConvReader(len(table) + 1).state_dict()
    assert named == variant
    assert (coder.painting != choose_painting(table, "farthest")) == (variant[0] == "T")
    assert (coder.reader is not None) == (variant[1] == "T")
    frozen = load_posterior(vq_folder).state_dict()
    assert all(torch.equal(frozen[n], w) for n, w in coder.posterior.state_dict().items())

    model = make_model(variant=variant, start_from=recipe.hp.out)
    trainer = fit(model, shards, tmp_path)
    assert model.painting == coder.painting
    if coder.reader is not None:
        read = model.stages.reader.state_dict()
        assert all(torch.equal(read[n], w) for n, w in coder.reader.state_dict().items())
        assert read.keys() == fresh.keys()
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = load_system(str(tmp_path / "a.ckpt")).make_predictor()
    loaded.save(str(tmp_path / "out"))
    again = load_predictor(str(tmp_path / "out"))
    batch = make_batch(torch.zeros(2, 32, 32, dtype=torch.int32), [(), ()])
    one, two = loaded(batch), again(batch)
    assert torch.equal(one.labels, two.labels)
    assert one.scores == two.scores


def test_a_resumed_stage_is_the_one_that_was_never_left(shards, vq_folder, tmp_path):
    make = lambda: make_recipe(vq_folder, tmp_path, "TT", 3)
    make_trainer(tmp_path, steps=3).fit(whole := make(), make_data(shards))
    trainer = make_trainer(tmp_path, steps=1)
    trainer.fit(first := make(), make_data(shards))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[1] for name in stored} == {"palette", "reader"}
    second = make()
    torch.manual_seed(9)
    make_trainer(tmp_path, steps=3).fit(second, make_data(shards), ckpt_path=tmp_path / "a.ckpt")
    assert not torch.equal(first.palette.weight, whole.palette.weight)
    for name, weight in whole.trained.state_dict().items():
        assert torch.equal(second.trained.state_dict()[name], weight), name


def test_another_variants_folder_or_changed_colours_are_named(shards, vq_folder, tmp_path):
    coder = Coder(load_posterior(vq_folder), choose_painting(TABLE, "farthest"))
    save_coder(coder, "TF", str(tmp_path / "tf"))
    model = make_model(variant="FT", start_from=str(tmp_path / "tf"))
    with pytest.raises(UnigsError, match=r"expected a maskige of FT, got one of TF, at .*tf"):
        make_trainer(tmp_path).fit(model, make_data(shards))
    model = make_model(variant="TF", start_from=str(tmp_path / "tf"))
    with pytest.raises(UnigsError, match=r"expected the model's 3 classes"):
        make_trainer(tmp_path).fit(model, make_data(shards))
    model.remember(choose_painting(TABLE, "random"), 32)
    with pytest.raises(UnigsError, match=r"expected the colours .* got others, at .*tf"):
        model.configure_model()
    with pytest.raises(UnigsError, match=r"expected a GSSPredictor, got Maskige"):
        load_stages(str(tmp_path / "tf"))
