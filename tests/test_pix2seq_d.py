"""Pix2Seq-D: its diffusion, its losses, and its life as a system of the house."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from builders import build_data
from diffusers import DDIMScheduler
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification

from unigs.batches import stack_samples
from unigs.callbacks import EMA, Evaluation, SampledValidation
from unigs.codec.analog_bits import BitCode, decode_bits, encode_bits
from unigs.data import UniGSData
from unigs.metrics.panoptic import PanopticEntityQuality
from unigs.noise import draw_times
from unigs.records import UnigsError
from unigs.systems import Pix2SeqD
from unigs.systems.backbone import Backbone
from unigs.systems.load import load_predictor, load_system
from unigs.systems.pix2seq_d.diffusion import (
    BitSampling,
    add_noise,
    list_times,
    sample_bits,
    signal_share,
)
from unigs.systems.pix2seq_d.network import BitDenoiser, Network
from unigs.systems.pix2seq_d.objective import (
    Objective,
    Truth,
    count_outputs,
    measure_error,
    read_clean,
    read_truth,
)
from unigs.systems.sampling import Sampling
from unigs.systems.system import Optimizer
from unigs.tasks import TaskOptions
from unigs.tasks.classes import UNKNOWN, ClassTable, list_classes, paint_classes
from unigs.verbs.sample import sample_pictures
from unigs.verbs.sheet import render_sheet

CODE = BitCode(5, 4, 0.1)
TINY = Network(
    Backbone(width=8), divisor=4, features=8, tokens=32, encoder_layers=1, base=8,
    multipliers=(1, 2), decoder_layers=1,
)  # fmt: skip
QUICK = BitSampling(steps=2, td=1.0, least_px=4)
LOSSES = ("xent", "l2", "sigmoid", "eps")


def make_model(**changes) -> Pix2SeqD:
    options = {"code": CODE, "network": TINY, "sampling": QUICK}
    options["optimizer"] = Optimizer(1e-3, warmup_steps=1)
    return Pix2SeqD(**{**options, **changes})


def make_data(shards, **changes) -> UniGSData:
    options = {
        "tasks": TaskOptions(32, max_painted=15),
        "task_ratios": {"entity": 1.0},
        "global_batch_size": 4,
        "steps_per_epoch": 2,
        "num_workers": 0,
        "samples_per_task": 2,
        "batch_size": 2,
    }
    return build_data(shards, **{**options, **changes})


def build(shards, **changes) -> Pix2SeqD:
    """A model that knows the data's classes and has its network, without a trainer."""
    model, data = make_model(**changes), make_data(shards)
    model.take_data(list_classes(data.select_sources("train")[0]), 32)
    torch.manual_seed(3)
    model.configure_model()
    return model


def read_batch(shards, count: int = 4):
    data = make_data(shards)
    data.trainer = SimpleNamespace(lightning_module=make_model())
    dataset = data.make_dataset("train", True, {"entity": 1.0})
    return stack_samples([dataset[i].sample for i in range(count)])


def draw_bits(seed: int = 0, code: BitCode = CODE, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    maps = [
        torch.randint(0, most + 1, (batch, 6, 6), generator=generator)
        for most in (code.most_class, code.most_id)
    ]
    return encode_bits(*maps, code)


def say_surely(bits: torch.Tensor, loss: str, noisy, gamma, code: BitCode) -> torch.Tensor:
    """What a network that knows these bits would answer."""
    if loss == "l2":
        return bits
    if loss == "sigmoid":
        return bits.sign() * 50
    if loss == "eps":
        share = gamma[:, None, None, None]
        return (noisy - share.sqrt() * bits) / (1 - share).sqrt()
    groups = zip(decode_bits(bits, code), (code.class_bits, code.id_bits))
    hot = [torch.nn.functional.one_hot(one, 2**count) for one, count in groups]
    return torch.cat(hot, -1).permute(0, 3, 1, 2) * 200.0


# --- diffusion ---


def test_the_share_of_signal_is_its_closed_form():
    for time in (0.0, 0.2, 0.5, 0.9, 1.0):
        expected = math.cos(math.pi / 2 * (time + 0.0002) / 1.00025) ** 2
        found = float(signal_share(torch.tensor(time, dtype=torch.float64)))
        assert found == pytest.approx(expected, abs=1e-15)
    times = signal_share(torch.linspace(0, 1, 101, dtype=torch.float64))
    assert (times.diff() < 0).all()
    assert 1 - times[0] < 1e-6
    assert 0 < times[-1] < 1e-8


def test_noise_keeps_variance_and_ends_as_told():
    clean, noise = torch.ones(2, 3, 4, 4), torch.full((2, 3, 4, 4), 2.0)
    noisy = add_noise(clean, noise, torch.tensor([1.0, 0.36]))
    torch.testing.assert_close(noisy[0], clean[0])
    torch.testing.assert_close(noisy[1], torch.full((3, 4, 4), 0.6 + 0.8 * 2))


def test_times_are_keyed_and_uniform():
    times = draw_times(7, range(4000))
    assert torch.equal(times[5:9], draw_times(7, [5, 6, 7, 8]))
    assert not torch.equal(times[:4], draw_times(8, range(4)))
    assert 0 <= times.min() < 0.01 < 0.99 < times.max() < 1
    assert abs(float(times.mean()) - 0.5) < 0.02


@pytest.mark.parametrize("td", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_times_fall_from_one_to_zero_and_aim_td_steps_further(steps, td):
    pairs = list_times(steps, td)
    assert len(pairs) == steps
    assert pairs[0][0] == 1
    assert pairs[-1][1] == 0
    for k, (now, then) in enumerate(pairs):
        assert now == pytest.approx(1 - k / steps)
        assert then == pytest.approx(max(0, now - (1 + td) / steps), abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_without_asymmetry_it_is_the_ddim_of_diffusers(steps):
    weight = torch.randn(9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 9

    def predict(noisy, gamma):
        mixed = torch.einsum("dc,bchw->bdhw", weight, noisy)
        return mixed + 0.05 * gamma[:, None, None, None]

    noise = torch.randn(2, 9, 4, 4, generator=torch.Generator().manual_seed(2)).double()
    mine = sample_bits(predict, noise, 0.1, BitSampling(steps, 0.0))

    scheduler = DDIMScheduler(
        steps, prediction_type="sample", clip_sample=True, clip_sample_range=0.1
    )
    scheduler.alphas_cumprod = signal_share(torch.arange(1, steps + 1).double() / steps)
    scheduler.final_alpha_cumprod = signal_share(torch.zeros((), dtype=torch.float64))
    scheduler.set_timesteps(steps)
    noisy = noise
    for step in scheduler.timesteps:
        answer = predict(noisy, scheduler.alphas_cumprod[step].expand(2))
        done = scheduler.step(answer, step, noisy, use_clipped_model_output=True)
        noisy = done.prev_sample
    torch.testing.assert_close(mine, done.pred_original_sample, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("td", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 20])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_perfect_denoiser_gives_the_truth_in_any_steps(loss, steps, td):
    truth = draw_bits()
    noise = torch.randn(2, CODE.channels, 6, 6, generator=torch.Generator().manual_seed(2))

    def predict(noisy, gamma):
        answer = say_surely(truth, loss, noisy, gamma, CODE)
        return read_clean(loss, answer, noisy, gamma, CODE)

    found = sample_bits(predict, noise, CODE.scale, BitSampling(steps, td))
    assert torch.equal(found.sign(), truth.sign())
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-3 if loss == "eps" else 1e-7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_bits_that_are_not_finite_are_told_in_words(value):
    predict = lambda noisy, gamma: torch.full_like(noisy, value)
    with pytest.raises(UnigsError, match="expected finite bits, got NaN or infinity, from the den"):
        sample_bits(predict, torch.randn(2, 9, 4, 4), 0.1, BitSampling(2))


def test_sure_logits_are_exact_bits():
    truth = draw_bits(4)
    logits = say_surely(truth, "xent", truth, None, CODE)
    assert torch.equal(read_clean("xent", logits, truth, torch.ones(2), CODE), truth)


# --- losses ---


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ids", ["random", "place"])
def test_losses_are_finite_and_move_all_of_the_network(shards, loss, ids):
    model = build(shards, objective=Objective(loss, ids=ids))
    found = model.losses(read_batch(shards))
    assert found.keys() == model.loss_weights.keys() == {"bits"}
    assert found["bits"].shape == (4,)
    assert found["bits"].dtype == torch.float32
    found["bits"].sum().backward()
    for name, weight in model.denoiser.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name


def test_losses_depend_on_seed_and_index_alone(shards):
    model, batch = build(shards), read_batch(shards)
    once = model.losses(batch)["bits"]
    torch.randn(7)
    assert torch.equal(once, model.losses(batch)["bits"])
    assert (once != model.losses(replace(batch, index=batch.index + 100))["bits"]).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_not_known_carries_no_loss(shards, loss):
    model, batch = build(shards, objective=Objective(loss)), read_batch(shards)
    blank = replace(batch, ignored=torch.ones_like(batch.ignored))
    assert not model.losses(blank)["bits"].any()
    nameless = replace(batch, names=[tuple("?" for _ in one) for one in batch.names])
    nameless.labels = batch.labels.clamp(min=1)
    assert not model.losses(nameless)["bits"].any()


def test_the_truth_on_the_grid_is_the_pictures(shards):
    model, batch = build(shards), read_batch(shards)
    truth = read_truth(batch, model.classes, CODE, Objective(ids="place"), (32, 32))
    classes = paint_classes(batch, model.classes)
    assert torch.equal(truth.known, classes != UNKNOWN)
    assert torch.equal(truth.classes, (classes + 1).clamp(min=0))
    for ids, labels, mine in zip(truth.ids, batch.labels, classes):
        pairs = torch.stack((ids, labels.long() * (mine >= 0))).flatten(1).unique(dim=1)
        assert all(len(row.unique()) == len(row) for row in pairs)


def test_sure_and_right_costs_nothing_and_wrong_costs_much():
    bits, noise = draw_bits(), torch.randn(2, CODE.channels, 6, 6)
    gamma = torch.tensor([0.5, 0.9])
    noisy = add_noise(bits, noise, gamma)
    made = (bits, noise)
    truth = Truth(*decode_bits(bits, CODE), torch.ones(2, 6, 6, dtype=torch.bool))
    for loss in LOSSES:
        right, wrong = (
            measure_error(loss, say_surely(told, loss, noisy, gamma, CODE), truth, made, CODE)
            for told in (bits, -bits)
        )
        assert right.shape == (2, 6, 6)
        assert float(right.max()) < 1e-5
        assert float(wrong.min()) > 0.01
        assert count_outputs(loss, CODE) == (48 if loss == "xent" else 9)


# --- network and predictor ---


@pytest.mark.parametrize("steps", [1, 3])
def test_the_picture_is_looked_at_once_whatever_the_steps(shards, steps, monkeypatch):
    model, counts = build(shards), {"encode": 0, "denoise": 0}
    for name in counts:
        whole = getattr(model.denoiser, name)

        def counted(*args, name=name, whole=whole):
            counts[name] += 1
            return whole(*args)

        monkeypatch.setattr(model.denoiser, name, counted)
    prediction = model.make_predictor(Sampling(num_inference_steps=steps))(read_batch(shards))
    assert counts == {"encode": 1, "denoise": steps}
    assert prediction.labels.dtype == torch.int32
    assert prediction.labels.shape == (4, 32, 32)


def test_a_network_that_knows_the_truth_predicts_it(shards, monkeypatch):
    """Truth -> bits -> sampler -> masks, names and scores; a grid of the picture's own size."""
    model = build(shards, network=replace(TINY, divisor=1))
    batch = read_batch(shards)
    truth = read_truth(batch, model.classes, CODE, model.objective, (32, 32))
    bits = encode_bits(truth.classes, truth.ids, CODE)
    monkeypatch.setattr(
        model.denoiser, "denoise",
        lambda noisy, gamma, features, tokens: say_surely(bits, "xent", noisy, gamma, CODE),
    )  # fmt: skip
    found = model.make_predictor()(batch)
    classes = paint_classes(batch, model.classes)
    for row, (names, scores) in enumerate(zip(found.names, found.scores, strict=True)):
        assert len(names) == len(scores) == int(found.labels[row].max())
        assert all(score == pytest.approx(1) for score in scores)
        for label, name in enumerate(names, 1):
            where = found.labels[row] == label
            assert len(batch.labels[row][where].unique()) == 1
            assert (classes[row][where] == model.classes.number(name)).all()
            assert (batch.labels[row] == batch.labels[row][where][0]).sum() == where.sum()


def test_without_the_picture_the_picture_decides_nothing(shards):
    model, batch = build(shards, unconditional=True), read_batch(shards)
    model.losses(batch)["bits"].sum().backward()
    moved = {name for name, p in model.denoiser.named_parameters() if p.grad is not None}
    assert moved == {f"decoder.{name}" for name, _ in model.denoiser.decoder.named_parameters()}
    other = replace(batch, image=255 - batch.image)
    assert torch.equal(model.losses(batch)["bits"], model.losses(other)["bits"])
    seeing = build(shards)
    assert not torch.equal(seeing.losses(batch)["bits"], seeing.losses(other)["bits"])


def test_a_picture_is_seen_alike_in_any_batch_training_or_not(shards):
    """Exact resume on any ranks: no layer looks at other pictures or counts what it saw."""
    model, image = build(shards), read_batch(shards).image
    trained = model.train().denoiser.encode(image)
    alone = [model.denoiser.encode(image[row : row + 1]) for row in range(len(image))]
    for whole, parts, tested in zip(trained, zip(*alone), model.eval().denoiser.encode(image)):
        torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(whole, tested, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_noisy_bits_have_a_variance_of_one_if_so_told(share, scale, monkeypatch):
    network = BitDenoiser(replace(TINY, normalize_noisy=True), BitCode(5, 4, scale), 9)
    generator = torch.Generator().manual_seed(0)
    bits = scale * (2 * torch.randint(2, (2, 9, 64, 64), generator=generator) - 1)
    gamma = torch.full((2,), share)
    noisy = add_noise(bits, torch.randn(bits.shape, generator=generator), gamma)
    seen = []
    monkeypatch.setattr(
        network.decoder, "forward", lambda x, *_: seen.append(x) or SimpleNamespace(sample=x)
    )
    network.denoise(noisy, gamma, torch.zeros(2, 8, 64, 64), torch.zeros(2, 1, 32))
    assert seen[0][:, :9].var() == pytest.approx(1, rel=0.02)


def test_the_defaults_are_as_large_as_the_papers():
    with torch.device("meta"):
        network = BitDenoiser(Network(Backbone(width=64)), BitCode(), 512)
    assert network.decoder.config.block_out_channels == (128, 128, 256, 256)
    assert network.decoder.conv_in.kernel_size == network.decoder.conv_out.kernel_size == (1, 1)
    assert len(network.encoder.layers.layers) == 12
    assert len(network.decoder.mid_block.attentions[0].transformer_blocks) == 6


# --- a system of the house ---


def make_trainer(folder, *callbacks, **changes) -> L.Trainer:
    saver = ModelCheckpoint(
        str(folder / "checkpoints"), save_last=True, enable_version_counter=False
    )
    options = {
        "default_root_dir": folder,
        "max_steps": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    return L.Trainer(**{**options, **changes}, callbacks=[saver, *callbacks])


@pytest.fixture(scope="module")
def fitted(shards, tmp_path_factory):
    """Two steps with the real callbacks; the folder and the trainer."""
    folder = tmp_path_factory.mktemp("fitted")
    callbacks = [EMA(0.9), SampledValidation(Sampling(num_inference_steps=1))]
    trainer = make_trainer(folder, *callbacks)
    torch.manual_seed(0)
    trainer.fit(make_model(), make_data(shards))
    return folder, trainer


def test_the_loader_draws_the_noise_of_a_step(fitted, shards, monkeypatch):
    """Bit for bit what a step would draw for itself, which then draws none."""
    model, data = fitted[1].lightning_module, make_data(shards)
    data.trainer = fitted[1]
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    expected = model.losses(replace(batch, noise=None))["bits"]
    monkeypatch.delattr("unigs.noise.draw_noise")
    assert torch.equal(model.losses(batch)["bits"], expected)


def test_a_fit_validates_averages_and_saves(fitted):
    folder, trainer = fitted
    assert {"val/bits", "val/entity/miou", "train/loss"} <= trainer.callback_metrics.keys()
    assert all(value.isfinite() for value in trainer.callback_metrics.values())
    live = load_system(str(folder / "checkpoints" / "last.ckpt"), ema=False)
    mean = load_system(str(folder / "checkpoints" / "last.ckpt"))
    assert isinstance(mean, Pix2SeqD)
    assert mean.classes == trainer.model.classes
    assert mean.side_px == 32
    pairs = zip(live.denoiser.parameters(), mean.denoiser.parameters())
    assert any(not torch.equal(*pair) for pair in pairs)
    for name, value in trainer.model.denoiser.state_dict().items():
        assert torch.equal(value, live.denoiser.state_dict()[name]), name


def test_a_run_resumes_bit_for_bit(shards, fitted, tmp_path):
    torch.manual_seed(0)
    whole = make_trainer(tmp_path / "whole", limit_val_batches=0, max_steps=4)
    whole.fit(make_model(), make_data(shards))
    torch.manual_seed(0)
    first = make_trainer(tmp_path / "parts", limit_val_batches=0, max_steps=3)
    first.fit(make_model(), make_data(shards))
    torch.manual_seed(9)
    rest = make_trainer(tmp_path / "parts", limit_val_batches=0, max_steps=4)
    last = str(tmp_path / "parts" / "checkpoints" / "last.ckpt")
    rest.fit(make_model(), make_data(shards), ckpt_path=last)
    for name, value in whole.model.denoiser.state_dict().items():
        assert torch.equal(value, rest.model.denoiser.state_dict()[name]), name


def test_the_fixed_protocol_scores_it_with_classes(shards, fitted, tmp_path):
    folder, _ = fitted
    last = str(folder / "checkpoints" / "last.ckpt")
    trainer = make_trainer(tmp_path, Evaluation(str(tmp_path / "out"), "mine", 2))
    trainer.test(make_model(), make_data(shards), ckpt_path=last)
    (report,) = (tmp_path / "out").glob("*.md")
    assert "class PQ" in report.read_text()


@pytest.mark.parametrize("unconditional", [False, True])
def test_a_folder_gives_the_same_prediction(shards, tmp_path, unconditional):
    model, batch = build(shards, unconditional=unconditional), read_batch(shards)
    predictor = model.make_predictor()
    predictor.save(str(tmp_path / "out"))
    again = load_predictor(str(tmp_path / "out"), "again")
    assert (again.name, again.side_px, again.tasks) == ("again", 32, ("entity",))
    assert again.options == predictor.options
    mine, theirs = predictor(batch), again(batch)
    assert torch.equal(mine.labels, theirs.labels)
    assert torch.equal(mine.colormap, theirs.colormap)
    assert (mine.scores, mine.names) == (theirs.scores, theirs.names)
    assert again.decode_again(batch, theirs, "bits") is theirs
    render_sheet(str(tmp_path / "out"), [shards], str(tmp_path / "sheet.png"), per_task=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (sheet.width // 128, sheet.height // 128) == (5, 2)
    predictor.save(str(tmp_path / "out"), half=True)
    assert load_predictor(str(tmp_path / "out"))(batch).labels.shape == mine.labels.shape


def test_the_verb_of_the_joint_model_refuses_its_folder(shards, tmp_path):
    build(shards).make_predictor().save(str(tmp_path / "out"))
    with pytest.raises(UnigsError, match=r"got a Pix2SeqDPredictor, .* works with unigs segment"):
        sample_pictures(tmp_path / "tryout", pipeline=tmp_path / "out")


def test_a_trained_backbone_travels_with_the_folder(shards, tmp_path):
    config = ResNetConfig(
        layer_type="bottleneck", depths=[1, 1, 1, 1], embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
    )  # fmt: skip
    whole = ResNetForImageClassification(config)
    whole.save_pretrained(tmp_path / "resnet")
    told = replace(TINY, backbone=Backbone(str(tmp_path / "resnet")))
    model, batch = build(shards, network=told), read_batch(shards)
    mine = model.denoiser.encoder.look.backbone.state_dict()
    theirs = whole.resnet.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert mine.keys() == theirs.keys()
    model.train()
    before = {name: value.clone() for name, value in model.denoiser.named_buffers()}
    model.losses(batch)
    assert all(torch.equal(v, before[n]) for n, v in model.denoiser.named_buffers())
    model.make_predictor().save(str(tmp_path / "out"))
    (tmp_path / "resnet").rename(tmp_path / "gone")
    again = load_predictor(str(tmp_path / "out"))
    assert torch.equal(again(batch).labels, model.make_predictor()(batch).labels)


def test_a_stage_begins_with_the_weights_of_the_one_before(shards, tmp_path):
    earlier = build(shards, unconditional=True)
    earlier.make_predictor().save(str(tmp_path / "earlier"))
    later = build(shards, start_from=str(tmp_path / "earlier"))
    for name, value in earlier.denoiser.state_dict().items():
        assert torch.equal(value, later.denoiser.state_dict()[name]), name
    assert not later.denoiser.blind
    assert all(weight.requires_grad for weight in later.denoiser.parameters())
    for change, named in (
        ({"code": BitCode(6, 4, 0.1)}, "model.code"),
        ({"network": replace(TINY, base=16)}, "model.network"),
        ({"objective": Objective("l2")}, "model.objective.loss"),
    ):
        with pytest.raises(UnigsError, match=named):
            build(shards, start_from=str(tmp_path / "earlier"), **change)


# --- errors ---


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BitSampling(steps=0), "expected 1 or more, got 0, at model.sampling.steps"),
        (lambda: BitSampling(td=-1), "got -1, at model.sampling.td"),
        (lambda: BitSampling(td=math.nan), "got nan, at model.sampling.td"),
        (lambda: BitSampling(least_px=0), "model.sampling.least_px"),
        (lambda: Network(tokens=48), "multiple of 32, got 48, at model.network.tokens"),
        (lambda: Network(divisor=0), "model.network.divisor"),
        (lambda: Objective("ce"), "got 'ce', at model.objective.loss"),
        (lambda: Objective(ids="none"), "model.objective.ids"),
        (lambda: make_model(objective=Objective(most_ids=16)), "1..15.*most_ids"),
        (lambda: QUICK.change(Sampling(solver="ddim", ensemble_size=2)), "ensemble_size, solver"),
    ],
)
def test_wrong_options_are_refused_by_name(make, words):
    with pytest.raises(UnigsError, match=words):
        make()


def test_the_houses_sampling_changes_steps_and_seed_alone():
    assert QUICK.change(None) == QUICK
    changed = QUICK.change(Sampling(num_inference_steps=9, seed=4))
    assert asdict(changed) == {**asdict(QUICK), "steps": 9, "seed": 4}


def test_a_picture_that_the_divisor_does_not_divide_is_refused(shards):
    model, batch = build(shards), read_batch(shards)
    odd = replace(
        batch, image=batch.image[..., :30], labels=batch.labels[..., :30],
        ignored=batch.ignored[..., :30],
    )  # fmt: skip
    for ask in (model.losses, model.make_predictor()):
        with pytest.raises(UnigsError, match="multiples of 4, got 32 x 30"):
            ask(odd)


def test_other_tasks_are_refused(shards):
    model, batch = build(shards), read_batch(shards)
    other = replace(batch, task=torch.zeros_like(batch.task))
    for ask in (model.losses, model.make_predictor()):
        with pytest.raises(UnigsError, match="inpainting"):
            ask(other)
    with pytest.raises(UnigsError, match="'dichotomy'"):
        model.make_predictor().decode_again(batch, None, "dichotomy")


def test_more_classes_than_the_bits_hold_are_refused(shards):
    with pytest.raises(UnigsError, match=r"at most 1 classes, as .*class_bits 1 hold"):
        build(shards, code=BitCode(1, 4))
    with pytest.raises(UnigsError, match="none yet"):
        make_model().make_predictor()


def test_other_classes_are_refused_in_a_fit_and_kept_elsewhere(shards, fitted, monkeypatch):
    folder, trainer = fitted
    last = str(folder / "checkpoints" / "last.ckpt")
    other = ClassTable(("axolotl",), (True,))
    monkeypatch.setattr("unigs.systems.pix2seq_d.module.list_classes", lambda manifests: other)
    with pytest.raises(UnigsError, match=r"axolotl|also with|without"):
        make_trainer(folder, max_steps=4).fit(make_model(), make_data(shards), ckpt_path=last)
    model = make_model()
    make_trainer(folder).validate(model, make_data(shards), ckpt_path=last, verbose=False)
    assert model.classes == trainer.model.classes


# --- learning ---


@pytest.mark.slow
def test_it_overfits_sixteen_scenes(shards):
    """Noise, times and ids are new in every step; ids by place, as random ones take far longer."""
    network = Network(
        Backbone(width=16, enlarge=2), divisor=1, features=32, tokens=64, encoder_layers=1,
        base=32, multipliers=(1, 2, 2), decoder_layers=1,
    )  # fmt: skip
    sampling = BitSampling(3, 1.0, 2)
    model = build(shards, network=network, objective=Objective(ids="place"), sampling=sampling)
    batch, rate, steps = read_batch(shards, 16), 2e-3, 250
    optimizer = torch.optim.AdamW(model.denoiser.parameters(), lr=rate)
    for step in range(steps):
        share = min((step + 1) / 50, 1, 3 * (1 - step / steps) + 0.02)
        optimizer.param_groups[0]["lr"] = rate * share
        loss = model.losses(replace(batch, index=batch.index + 16 * step))["bits"].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.denoiser.parameters(), 1.0)
        optimizer.step()
    found, quality = model.make_predictor()(batch), PanopticEntityQuality()
    quality.update(found.labels, batch.labels, batch.ignored)
    assert float(quality.compute()["pq"]) > 0.8
