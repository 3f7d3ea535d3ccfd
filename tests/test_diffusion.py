"""Widening, encoders and objective."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from ldm_layout import write_original
from safetensors.torch import save_file

from unigs.batches import stack_samples
from unigs.codec import Palette
from unigs.noise import draw_noise, draw_timesteps
from unigs.recipes.bases import make_base
from unigs.records import TASKS, UnigsError
from unigs.systems.balance import balance_sizes, known_share
from unigs.systems.joint.base import load_components
from unigs.systems.joint.conditions import (
    Conditions,
    Known,
    add_words,
    encode_conditions,
    encode_training,
    read_batch,
    shrink_mask,
)
from unigs.systems.joint.denoiser import denoise, join_inputs, spread_streams, widen_unet
from unigs.systems.joint.objective import (
    branch_losses,
    given_streams,
    regression_target,
    shift_timesteps,
    snr_weights,
)
from unigs.systems.joint.presets import PRESETS
from unigs.systems.pixels import to_signed, to_uint8
from unigs.tasks import RECIPES, TaskOptions


def make_unet(channels: int) -> UNet2DConditionModel:
    torch.manual_seed(0)
    config = {
        **PRESETS["tiny"]["unet"],
        "block_out_channels": (16, 16, 32),
        "in_channels": channels,
    }
    return UNet2DConditionModel(**config).eval()


@pytest.fixture(scope="module")
def components(base):
    return load_components(base)


@pytest.fixture(scope="module")
def batch(shards):
    from unigs.data import UniGSData

    data = UniGSData([shards], TaskOptions(64))
    dataset = data.make_dataset("train", augment=True, ratios=data.task_ratios)
    return stack_samples([dataset[i].sample for i in range(10)])


@pytest.mark.parametrize("channels", [4, 9])
def test_with_no_colormap_the_widened_unet_is_the_original_bit_for_bit(channels):
    """Whatever the order in which a machine sums its input channels: here their sums are exact."""
    exact = lambda values: (values * 16).round() / 16
    unet = make_unet(channels)
    for weight in unet.conv_in.parameters():
        weight.data = exact(weight.data)
    wide = widen_unet(unet).eval()
    image, mask, context = (
        exact(torch.randn(2, 4, 16, 16)),
        exact(torch.rand(2, 1, 16, 16)),
        exact(torch.randn(2, 4, 16, 16)),
    )
    text, steps = torch.randn(2, 7, 64), torch.tensor([3, 700])
    old = image if channels == 4 else torch.cat([image, mask, context], 1)
    streams = torch.cat([image, torch.zeros_like(image)], 1)
    for task in range(4):
        told = Conditions(mask, context, text, torch.full((2,), task))
        with torch.no_grad():
            new = denoise(wide, streams, steps, told)
            expected = unet(old, steps, encoder_hidden_states=text).sample
        assert torch.equal(new[:, :4], expected)
        assert not new[:, 4:].any()


def test_channel_order_is_eq_8():
    parts = [torch.full((1, n, 1, 1), v) for n, v in ((8, 1.0), (1, 2.0), (4, 3.0))]
    assert join_inputs(*parts).flatten().tolist() == [1.0] * 8 + [2.0] + [3.0] * 4


def test_parameter_counts_are_the_papers():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**PRESETS["sd15"]["unet"])
        wide = widen_unet(unet)
    count = lambda model: sum(p.numel() for p in model.parameters())
    assert count(unet) == 859_535_364
    assert count(wide) - wide.class_embedding.weight.numel() == 859_558_408
    assert wide.class_embedding.weight.shape == (4, 1280)


def test_a_widened_unet_reloads_and_is_not_widened_twice(tmp_path):
    wide = widen_unet(make_unet(9))
    wide.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    for name, weight in wide.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert widen_unet(again) is again


def test_a_unet_of_other_channels_is_refused():
    with pytest.raises(UnigsError, match="7 in"):
        widen_unet(make_unet(7))


def test_pixels_survive_the_signed_range():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_signed(pixels)), pixels)


def test_a_cell_with_any_pixel_to_fill_is_to_be_filled():
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[0, 0, 5, 9] = True
    small = shrink_mask(mask, (4, 4))
    assert small.sum() == 1
    assert small[0, 0, 1, 2] == 1


def test_one_pass_of_the_vae_gives_what_separate_passes_give(components, batch):
    """Encode-once equals encoding image, colormap and context each by themselves (Table 2)."""
    from unigs.codec import encode_colormap

    towers = components.towers
    passes = []
    original = type(towers).encode_pixels
    try:
        type(towers).encode_pixels = lambda self, x: passes.append(len(x)) or original(self, x)
        streams, contexts, _ = encode_training(towers, read_batch(batch, Palette()))
    finally:
        type(towers).encode_pixels = original
    own = sum(RECIPES[TASKS[t]].given is None for t in batch.task.tolist())
    assert passes == [2 * len(batch) + own]

    colormap = encode_colormap(batch.labels)
    for i, row in enumerate(batch.task.tolist()):
        recipe = RECIPES[TASKS[row]]
        known = to_signed((colormap if recipe.context == "colormap" else batch.image)[i : i + 1])
        known = known * ~batch.coarse_mask[i] if recipe.context == "masked image" else known
        parts = (batch.image[i : i + 1], colormap[i : i + 1])
        z_i, z_s = (towers.encode_pixels(part) for part in parts)
        torch.testing.assert_close(streams[i, :4], z_i[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(streams[i, 4:], z_s[0], rtol=1e-4, atol=1e-4)
        expected = towers.encode_pixels(known)[0]
        torch.testing.assert_close(contexts[i], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_a_context_is_encoded_alike_in_training_and_in_sampling(components, batch, task):
    """Of each task alone, and of the hole nothing is seen."""
    towers = components.towers
    seen = []
    encode = type(towers).encode_pixels
    rows = (batch.task == TASKS.index(task)).nonzero()[:, 0]
    everything = read_batch(batch, Palette())
    _, context, mask = encode_training(towers, everything)
    conditions = add_words(towers, mask, context, batch.prompts, batch.task)
    known = Known(
        tasks=[task] * len(rows),
        prompts=[batch.prompts[i] for i in rows],
        image=everything.image[rows],
        colormap=everything.colormap[rows],
        coarse_mask=everything.coarse_mask[rows],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(towers), "encode_pixels", lambda self, x: seen.append(x) or encode(self, x)
        )
        alone = encode_conditions(towers, known)
    for name in ("mask", "context", "text", "task"):
        part = getattr(conditions, name)[rows]
        torch.testing.assert_close(getattr(alone, name), part, rtol=1e-4, atol=1e-4)
    if RECIPES[task].context == "masked image":
        hole = known.coarse_mask.expand_as(seen[0])
        assert not seen[0][hole].any()
        assert torch.equal(seen[0][~hole], to_signed(known.image)[~hole])


def test_noise_and_timestep_depend_on_seed_and_index_alone():
    together = draw_noise(1, [3, 4, 5], (8, 2, 2), "noise")
    alone = draw_noise(1, [4], (8, 2, 2), "noise")
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(alone, draw_noise(2, [4], (8, 2, 2), "noise"))
    assert not torch.equal(alone, draw_noise(1, [4], (8, 2, 2), "sampling"))
    steps = draw_timesteps(0, range(4000), 1000)
    assert steps.min() >= 0
    assert steps.max() <= 999
    assert abs(steps.float().mean() - 499.5) < 15
    assert torch.equal(steps[7:9], draw_timesteps(0, [7, 8], 1000))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_prediction_lets_the_sampler_recover_the_truth(components, kind):
    """Target and sampler agree: one exact DDIM step from any t gives the clean latents back."""
    scheduler = components.scheduler
    scheduler.register_to_config(prediction_type=kind)
    clean, noise = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)
    for t in (999, 500, 20):
        steps = torch.full((2,), t)
        target = regression_target(scheduler, clean, noise, steps)
        sampler = DDIMScheduler.from_config(scheduler.config, clip_sample=False)
        sampler.set_timesteps(1000)
        noisy = scheduler.add_noise(clean, noise, steps)
        found = sampler.step(target, t, noisy).pred_original_sample
        torch.testing.assert_close(found, clean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("floor", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights_equal_the_published_rule(components, kind, floor):
    scheduler = components.scheduler
    scheduler.register_to_config(prediction_type=kind)
    steps = torch.tensor([0, 10, 300, 999])
    snr = compute_snr(scheduler, steps)
    capped = torch.maximum(torch.minimum(snr, torch.tensor(5.0)), torch.tensor(floor))
    expected = {"epsilon": capped / snr, "v_prediction": capped / (snr + 1), "sample": capped}[kind]
    torch.testing.assert_close(snr_weights(scheduler, steps, 5.0, floor), expected)


def test_losses_are_the_mean_squared_errors_of_the_streams():
    prediction, target = torch.randn(3, 8, 4, 4), torch.randn(3, 8, 4, 4)
    known = torch.ones(3, 1, 4, 4)
    image, colormap = branch_losses(prediction, target, known)
    mse = torch.nn.functional.mse_loss
    torch.testing.assert_close((image.mean() + colormap.mean()) / 2, mse(prediction, target))
    changed = prediction.clone()
    changed[:, :4] += 1
    assert torch.equal(branch_losses(changed, target, known)[1], colormap)


def test_unknown_cells_of_the_colormap_carry_no_loss():
    prediction, target = torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 4, 4)
    prediction[:, 4:, :2] = 5
    ignored = torch.zeros(1, 16, 16, dtype=torch.bool)
    ignored[:, :8] = True
    image, colormap = branch_losses(prediction, target, known_share(ignored, (4, 4)))
    assert image == 0
    assert colormap == 0


def test_balanced_weights_count_pixels_at_0_and_entities_at_1():
    labels = torch.zeros(2, 16, 16, dtype=torch.int32)
    labels[0, :, 10:] = 1
    labels[0, 2:5, 3:8] = 2
    labels[1, 4:, 3:] = 7
    assert torch.equal(balance_sizes(labels, (16, 16), 0.0), torch.ones(2, 1, 16, 16))
    known = balance_sizes(labels, (4, 4), 1.0, largest=9)
    assert torch.equal(known, balance_sizes(labels, (4, 4), 1.0))
    weight = balance_sizes(labels, (16, 16), 1.0)[:, 0]
    for one, mine in zip(weight, labels):
        sums = torch.stack([one[mine == label].sum() for label in mine.unique()])
        torch.testing.assert_close(sums, torch.full_like(sums, 256 / len(sums)))
    for power in (0.5, 1.0):
        grid = balance_sizes(labels, (4, 4), power)
        assert grid.shape == (2, 1, 4, 4)
        torch.testing.assert_close(grid.mean((1, 2, 3)), torch.ones(2))


def test_what_is_asked_weighs_apart_from_the_rest_whether_or_not_it_is_there():
    coarse = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    coarse[:2, :, 2:10, 2:10] = True
    coarse[2] = True
    labels = torch.zeros(3, 16, 16, dtype=torch.int32)
    labels[0, 4:8, 4:8] = 1  # asked for and there; the second is not, the third asks everywhere
    labels[2, 4:8, 4:8] = 1
    labels[0, 12:14, 12:14] = 2  # painted, though outside
    regions = torch.where(labels > 0, labels, 10 * coarse[:, 0])  # 10 is what is left of the mask
    for power in (0.5, 1.0):
        weight = balance_sizes(labels, (16, 16), power, coarse)
        torch.testing.assert_close(weight, balance_sizes(regions, (16, 16), power))
        torch.testing.assert_close(weight[2:], balance_sizes(labels[2:], (16, 16), power))


def test_shifted_timesteps_have_their_noise_level_raised_and_keep_their_order():
    steps = torch.arange(1000)
    assert torch.equal(shift_timesteps(steps, 1000, 1.0), steps)
    shifted = shift_timesteps(steps, 1000, 3.0)
    assert (shifted.diff() >= 0).all()
    assert (shifted >= steps).all()
    assert shifted.min() >= 0
    assert shifted.max() <= 999
    odds = (shifted + 0.5) / (999.5 - shifted)  # the map multiplies the odds u / (1 - u)
    expected = 3 * (steps + 0.5) / (999.5 - steps)
    middle = slice(100, 800)  # where rounding to whole steps is small
    torch.testing.assert_close(odds[middle], expected[middle], rtol=0.02, atol=0.01)


def test_given_streams_are_those_of_table_2():
    given = given_streams(torch.arange(4))
    channels = spread_streams(given)[..., 0, 0]
    for row, task in enumerate(TASKS):
        assert given[row].tolist() == [
            RECIPES[task].given == kind for kind in ("image", "colormap")
        ]
        assert torch.equal(channels[row, :4], given[row, :1].expand(4))
        assert torch.equal(channels[row, 4:], given[row, 1:].expand(4))


def test_a_base_is_never_overwritten_and_a_wrong_one_is_named(tmp_path, base):
    with pytest.raises(UnigsError, match=r"model_index\.json"):
        make_base(base)
    with pytest.raises(UnigsError, match="unigs base"):
        load_components(str(tmp_path))
    with pytest.raises(UnigsError, match="no/such-model"):
        load_components("no/such-model")


def test_frozen_towers_stay_frozen_and_in_evaluation_mode(components):
    towers = components.towers.train()
    assert not towers.training
    assert not towers.vae.training
    assert not any(p.requires_grad for p in towers.parameters())


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_small_text_encoders_give_a_word_the_same_embedding_wherever_it_stands(tmp_path, preset):
    make_base(str(tmp_path / "base"), preset)
    towers = load_components(str(tmp_path / "base")).towers
    first, second = towers.encode_text(["find star and ring", "find ring and star"])
    torch.testing.assert_close(first[[2, 4]], second[[4, 2]])
    assert not torch.allclose(first[2], first[4], atol=0.1)


def test_prompts_of_any_words_become_embeddings(components):
    text = components.towers.encode_text(["referring: find star.", "", "ein Gebäude: 日本"])
    assert text.shape[0] == 3
    assert text.isfinite().all()
    assert not torch.equal(text[0], text[1])


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_an_original_single_file_loads_like_the_folder_it_came_from(tmp_path, monkeypatch, suffix):
    pytest.importorskip("open_clip")  # the true vocabulary
    small = {
        "unet": {
            **PRESETS["sd15"]["unet"],
            "block_out_channels": (32, 32, 64, 64),
            "cross_attention_dim": 32,
        },
        "vae": {**PRESETS["sd15"]["vae"], "block_out_channels": (32, 32, 32, 32)},
        "text_encoder": {
            **PRESETS["sd15"]["text_encoder"],
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
    }
    monkeypatch.setitem(PRESETS, "sd15", small)
    make_base(str(tmp_path / "folder"), preset="sd15")
    folder = load_components(str(tmp_path / "folder"))
    towers = folder.towers
    weights = write_original(folder.unet, towers.vae, towers.text_encoder)
    file = tmp_path / f"model.{suffix}"
    if suffix == "ckpt":
        torch.save({"state_dict": weights}, file)
    else:
        save_file(weights, file)
    single = load_components(str(file))
    for first, second in (
        (folder.unet, single.unet),
        (towers.vae, single.towers.vae),
        (towers.text_encoder, single.towers.text_encoder),
    ):
        expected = second.state_dict()
        for name, weight in first.state_dict().items():
            assert torch.equal(weight, expected[name]), name
    words = ["inpainting: generate zebra."]
    assert torch.equal(towers.encode_text(words), single.towers.encode_text(words))
    assert widen_unet(single.unet).config.in_channels == 13
