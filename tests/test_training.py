"""The module learns, resumes, and keeps what it must out of checkpoints."""

from __future__ import annotations

import json
import os
import signal
import threading

import lightning as L
import pytest
import torch
from builders import build_data, build_unigs
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.flop_counter import FlopCounterMode

from unigs.batches import stack_samples
from unigs.callbacks import EMA, Evaluation, Preemption, SampledValidation, Throughput
from unigs.callbacks.throughput import FlopCount, find_peak
from unigs.checkpoints import read_checkpoint, read_ema
from unigs.codec import Palette
from unigs.data import UniGSData
from unigs.promises import PREEMPTED_EXIT_CODE, Preempted
from unigs.promises.resume import describe_run
from unigs.records import TASKS, UnigsError
from unigs.runs import OtherRun
from unigs.systems import UniGS
from unigs.systems.balance import balance_sizes
from unigs.systems.joint.base import load_components
from unigs.systems.joint.module import Compute
from unigs.systems.joint.pipeline import UniGSPipeline
from unigs.systems.load import load_system
from unigs.systems.sampling import Sampling
from unigs.tasks import TaskOptions
from unigs.verbs.export import export_pipeline
from unigs.verbs.fit import run_lightning

ONE_STEP = Sampling(num_inference_steps=1)


def make_data(shards, **changes) -> UniGSData:
    options = {
        "tasks": TaskOptions(64),
        "global_batch_size": 4,
        "steps_per_epoch": 3,
        "num_workers": 0,
        "samples_per_task": 1,
        "batch_size": 1,
    }
    return build_data(shards, **{**options, **changes})


def make_model(base, **changes) -> UniGS:
    options = {"learning_rate": 1e-3, "warmup_steps": 1, "palette": Palette(cells=7)}
    return build_unigs(base, **{**options, **changes})


def make_trainer(folder, **changes) -> L.Trainer:
    options = {
        "default_root_dir": folder,
        "max_steps": 4,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    return L.Trainer(**{**options, **changes})


@pytest.mark.parametrize(
    "kind",
    [
        "epsilon",
        pytest.param("v_prediction", marks=pytest.mark.slow),
        pytest.param("sample", marks=pytest.mark.slow),
    ],
)
def test_the_model_overfits_four_samples(base, shards, kind):
    dataset = make_data(shards).make_dataset("train", True, dict.fromkeys(TASKS, 1.0))
    batch = stack_samples([dataset[i].sample for i in range(4)])
    model = make_model(base, prediction_type=kind)
    model.configure_model()
    optimizer = torch.optim.AdamW(model.unet.parameters(), lr=4e-3)
    losses = []
    for _ in range(40):
        loss = sum(branch.mean() for branch in model.losses(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_both_branches_and_the_task_embedding_learn(base, shards):
    dataset = make_data(shards).make_dataset("train", True, dict.fromkeys(TASKS, 1.0))
    model = make_model(base)
    model.configure_model()
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.1)  # zero rows pass no gradient back
    losses = model.losses(stack_samples([dataset[i].sample for i in range(4)]))
    sum(branch.mean() for branch in losses.values()).backward()
    assert model.unet.class_embedding.weight.grad.any(1).all()
    for rows in (slice(0, 4), slice(4, 8)):
        assert model.unet.conv_out.weight.grad[rows].any()


def test_a_given_stream_weighs_as_it_is_told_and_no_other_does(base, shards):
    dataset = make_data(shards).make_dataset("train", True, dict.fromkeys(TASKS, 1.0))
    batch = stack_samples([dataset[i].sample for i in range(4)])
    losses = {}
    for weight in (0.0, 0.5, 1.0):
        model = make_model(base, given_weight=weight)
        model.configure_model()
        losses[weight] = torch.stack(list(model.losses(batch).values()), 1)  # [B, 2]
    names = [TASKS[row] for row in batch.task.tolist()]
    given = torch.tensor([[n in ("referring", "entity"), n == "synthesis"] for n in names])
    assert (losses[1.0] > 0).all()
    for weight, found in losses.items():
        torch.testing.assert_close(found, losses[1.0] * torch.where(given, weight, 1.0))


def test_balanced_sizes_weigh_every_loss_and_move_none_from_what_is_given(base, shards):
    dataset = make_data(shards).make_dataset("train", True, dict.fromkeys(TASKS, 1.0))
    batch = stack_samples([dataset[i].sample for i in range(4)])
    losses = []
    for power in (0.0, 0.5):
        model = make_model(base, size_balance=power, given_weight=0.0)
        model.configure_model()
        losses.append(model.losses(batch).values())
    for alike, balanced in zip(*losses):
        assert torch.equal(alike == 0, balanced == 0)
        assert (alike != balanced)[alike != 0].all()


def test_what_is_left_of_the_coarse_mask_weighs_in_every_loss(base, shards, monkeypatch):
    import unigs.systems.joint.objective as objective

    dataset = make_data(shards).make_dataset("train", True, dict.fromkeys(TASKS, 1.0))
    batch = stack_samples([dataset[i].sample for i in range(8)])
    expected = balance_sizes(batch.labels, (16, 16), 0.5, batch.coarse_mask)
    assert not torch.equal(expected, balance_sizes(batch.labels, (16, 16), 0.5))
    seen = []
    measure = objective.branch_losses
    monkeypatch.setattr(
        objective, "branch_losses", lambda *args: seen.append(args[3]) or measure(*args)
    )
    model = make_model(base, size_balance=0.5)
    model.configure_model()
    model.losses(batch)
    torch.testing.assert_close(seen, [expected])


def test_weights_by_noise_have_their_floor_and_their_cap(base, shards):
    dataset = make_data(shards).make_dataset("train", True, dict.fromkeys(TASKS, 1.0))
    batch = stack_samples([dataset[i].sample for i in range(12)])
    losses = []
    for options in ({}, {"min_snr_gamma": 5.0}, {"min_snr_gamma": 5.0, "snr_floor": 1.0}):
        model = make_model(base, prediction_type="sample", **options)
        model.configure_model()
        losses.append(torch.stack(list(model.losses(batch).values())))  # [2, B]
    plain, capped, floored = losses
    ratio = capped / plain
    torch.testing.assert_close(ratio[0], ratio[1])
    assert ratio.min() < 1 < ratio.max() < 5.001
    torch.testing.assert_close(floored / plain, ratio.clamp(min=1))


def test_only_the_mask_tasks_timesteps_are_shifted(base, shards, monkeypatch):
    import unigs.systems.joint.objective as objective

    seen = []

    def spy(unet, noisy, timesteps, latents):
        seen.append(timesteps)
        return noisy

    monkeypatch.setattr(objective, "denoise", spy)
    dataset = make_data(shards).make_dataset("train", True, dict.fromkeys(TASKS, 1.0))
    batch = stack_samples([dataset[i].sample for i in range(4)])
    for shift in (1.0, 3.0):
        model = make_model(base, mask_timestep_shift=shift)
        model.configure_model()
        model.losses(batch)
    mask_tasks = (batch.task == TASKS.index("referring")) | (batch.task == TASKS.index("entity"))
    assert mask_tasks.any()
    assert torch.equal(seen[1] > seen[0], mask_tasks)


def test_the_pipeline_samples_given_streams_as_they_were_trained(base):
    for way in ("denoise", "clamp"):
        own = Sampling(given_stream=way, num_inference_steps=3)
        best = Sampling(ensemble_size=2, num_inference_steps=2)  # a task's own beats all tasks'
        model = make_model(base, sampling={"all": own, "entity": best})
        model.configure_model()
        told = model.make_predictor().options
        assert [told[t]["num_inference_steps"] for t in TASKS] == [3, 3, 3, 2]
        assert model.make_predictor().options["entity"]["given_stream"] == way
        asked = model.make_predictor(Sampling(num_inference_steps=5)).options
        assert [asked[t]["num_inference_steps"] for t in TASKS] == [5] * 4
        assert [asked[t]["ensemble_size"] for t in TASKS] == [1, 1, 1, 2]


@pytest.fixture(scope="module")
def fitted(base, shards, tmp_path_factory):
    """Four steps with every callback, and the checkpoint of step 2."""
    folder = tmp_path_factory.mktemp("fit")
    saver = ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=2, filename="{step}")
    trainer = make_trainer(
        folder,
        callbacks=[EMA(0.9), saver, Throughput(1), SampledValidation(ONE_STEP, pictures=1)],
        limit_val_batches=4,
    )
    model = make_model(base)
    trainer.fit(model, make_data(shards))
    return folder, trainer, model


def test_checkpoints_hold_the_unet_and_nothing_frozen(fitted):
    checkpoint = torch.load(fitted[0] / "step=4.ckpt", weights_only=True)
    names = set(checkpoint["state_dict"])
    assert names == {f"unet.{name}" for name in fitted[2].unet.state_dict()}
    assert set(read_ema(checkpoint)) == {name for name, _ in fitted[2].unet.named_parameters()}


def test_validation_logs_every_task_and_speed_is_logged(fitted):
    logged = fitted[1].logged_metrics
    for task in TASKS:
        assert 0 <= logged[f"val/{task}/miou"] <= 1
        assert 0 <= logged[f"val/{task}/recall"] <= 1
    assert logged["perf/samples_per_s"] > 0
    assert 0 <= logged["perf/data_wait"] <= 1


def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(fitted, base, shards, tmp_path):
    """Cut at step 2, in the middle of an epoch of 3; also the average is the same."""
    model = make_model(base)
    ema = EMA(0.9)
    trainer = make_trainer(tmp_path, callbacks=[ema, ModelCheckpoint(tmp_path, save_last=True)])
    trainer.fit(model, make_data(shards), ckpt_path=fitted[0] / "step=2.ckpt")
    assert trainer.global_step == 4
    for name, weight in fitted[2].unet.state_dict().items():
        assert torch.equal(weight, model.unet.state_dict()[name]), name
    whole = read_ema(torch.load(fitted[0] / "step=4.ckpt", weights_only=True))
    for name, weight in ema.state_dict()["weights"].items():
        assert torch.equal(weight, whole[name]), name


def test_rates_and_decay_of_the_config_beat_those_of_a_checkpoint(fitted, base, shards, tmp_path):
    """Also with the average rate's schedule: warm-up over 8 steps, of which 2 are done."""
    asked = {"learning_rate": 3e-4, "weight_decay": 0.3, "betas": (0.8, 0.9), "warmup_steps": 8}
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, *args) -> None:
            (group,) = trainer.optimizers[0].param_groups
            seen.append([group[name] for name in ("lr", "weight_decay", "betas")])

    trainer = make_trainer(tmp_path, callbacks=[Watch(), EMA(0.9)])
    with pytest.warns(match=r"take effect.*model\.optimizer\.betas"):
        trainer.fit(
            make_model(base, **asked), make_data(shards), ckpt_path=fitted[0] / "step=2.ckpt"
        )
    assert [one[1:] for one in seen] == [[0.3, (0.8, 0.9)]] * 2
    assert [one[0] for one in seen] == pytest.approx([3e-4 * 3 / 8, 3e-4 * 4 / 8])


def test_export_writes_the_average_and_replaces_only_pipelines(fitted, tmp_path):
    checkpoint = str(fitted[0] / "step=4.ckpt")
    out = tmp_path / "pipeline"
    export_pipeline(checkpoint, str(out))
    export_pipeline(checkpoint, str(out))  # again: replaced
    assert not any(str(tmp_path.parent) in file.read_text() for file in out.rglob("*.json"))
    unet = UniGSPipeline.load(str(out)).unet
    averaged = read_ema(torch.load(checkpoint, weights_only=True))
    for name, weight in unet.named_parameters():
        assert torch.equal(weight, averaged[name])
    live = load_system(checkpoint, ema=False).unet.state_dict()
    assert any(not torch.equal(live[name], averaged[name]) for name in averaged)
    (tmp_path / "mine").mkdir()
    with pytest.raises(UnigsError, match="other files"):
        export_pipeline(checkpoint, str(tmp_path / "mine"))
    with pytest.raises(UnigsError, match="nowhere"):
        export_pipeline("nowhere.ckpt", str(out))


def test_a_run_of_the_command_line_goes_on_and_exports(base, shards, tmp_path, monkeypatch, capfd):
    """LightningCLI adds names of its own to the stored hyperparameters."""
    monkeypatch.chdir(tmp_path)
    flags = {
        "model": "unigs.systems.UniGS",
        "model.base": base,
        "data": "unigs.data.UniGSData",
        "data.shards": f"[{shards}]",
        "data.tasks.resolution_px": 64,
        "data.loading.global_batch_size": 2,
        "data.loading.steps_per_epoch": 1,
        "data.loading.num_workers": 0,
        "trainer.max_steps": 1,
        "trainer.limit_val_batches": 0,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.logger": "false",  # its versions would be folders of their own
        "trainer.default_root_dir": tmp_path,
    }
    words = ["fit", *(f"--{name}={value}" for name, value in flags.items())]
    assert run_lightning([*words, "--ckpt_path=last"]) == 0
    assert "no checkpoint of this run yet" in capfd.readouterr().out
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    (checkpoint.parent / "zzz.ckpt").write_bytes(b"cut")
    assert run_lightning([*words, "--ckpt_path=last", "--trainer.max_steps=2"]) == 0
    told = capfd.readouterr().out
    assert f"resuming from {checkpoint}" in told
    assert "passed over" in told
    assert read_checkpoint(checkpoint)["global_step"] == 2
    export_pipeline(str(checkpoint), str(tmp_path / "pipeline"))
    UniGSPipeline.load(str(tmp_path / "pipeline"))


def test_a_checkpoint_of_another_shape_is_refused_by_name(fitted, base):
    checkpoint = torch.load(fitted[0] / "step=4.ckpt", weights_only=True)
    checkpoint["state_dict"]["unet.conv_in.weight"] = torch.zeros(16, 9, 3, 3)
    with pytest.raises(UnigsError, match=r"unet\.conv_in\.weight"):
        make_model(base).on_load_checkpoint(checkpoint)


def test_ema_follows_the_average_of_the_weights(base, shards, tmp_path):
    """Against the recurrence: a = d a + (1 - d) w with d = min(decay, (1 + n) / (10 + n))."""
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            seen.append(pl_module.unet.conv_in.weight.detach().clone())

    model, ema = make_model(base), EMA(0.5)
    model.configure_model()
    expected = model.unet.conv_in.weight.detach().clone()
    make_trainer(tmp_path, callbacks=[Watch(), ema]).fit(model, make_data(shards))
    for n, weight in enumerate(seen):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(ema.state_dict()["weights"]["conv_in.weight"], expected)


def test_validation_sees_the_average_and_copies_nothing(base, shards, tmp_path):
    """Each tensor stays where it lies; the weights are back after a validation or an error."""
    seen = []

    class Watch(Callback):
        def on_validation_batch_start(self, trainer, pl_module, *args) -> None:
            weight, average = pl_module.unet.conv_in.weight, ema._averages["conv_in.weight"]
            seen.append((weight.data_ptr(), average.data_ptr()))
            if trainer.global_step == 4:
                raise UnigsError("expected an error, got one, in this test")

    model, ema = make_model(base), EMA(0.9)
    trainer = make_trainer(
        tmp_path, callbacks=[ema, Watch()], limit_val_batches=1, val_check_interval=2, max_steps=6,
        check_val_every_n_epoch=None,
    )  # fmt: skip
    with pytest.raises(UnigsError):
        trainer.fit(model, make_data(shards))
    weight, average = model.unet.conv_in.weight, ema.state_dict()["weights"]["conv_in.weight"]
    assert seen == [(average.data_ptr(), average.data_ptr())] * 2
    assert weight.data_ptr() != average.data_ptr()
    assert not torch.equal(weight, average)


def test_the_fused_optimiser_steps_as_the_plain_one_and_takes_its_state(base, shards, tmp_path):
    """A run that began with the plain one goes on, with the same losses within rounding."""

    class Plain(UniGS):
        def configure_optimizers(self):
            told = super().configure_optimizers()
            for group in told["optimizer"].param_groups:
                group["fused"] = self._asked["fused"] = None
            return told

        def on_load_checkpoint(self, checkpoint) -> None:
            """Leaves the state as it was saved."""

    def train(kind, folder, steps, resume=None) -> UniGS:
        saver = ModelCheckpoint(folder, every_n_train_steps=2, filename="{step}", save_top_k=-1)
        trainer = make_trainer(folder, callbacks=[saver], max_steps=steps, gradient_clip_val=1.0)
        model = make_model(base)
        model.__class__ = kind
        trainer.fit(model, make_data(shards), ckpt_path=resume)
        return model

    Plain.__name__ = "UniGS"
    plain = train(Plain, tmp_path / "plain", 4)
    fused = train(UniGS, tmp_path / "fused", 4, tmp_path / "plain" / "step=2.ckpt")
    assert fused.trainer.optimizers[0].param_groups[0]["fused"]
    losses = [float(model.trainer.logged_metrics["train/loss"]) for model in (plain, fused)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)  # biases before a norm follow rounding


def test_chunks_change_latents_by_rounding_alone(base):
    towers = load_components(base).towers
    pixels = torch.randint(0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    whole = towers.encode_pixels(pixels.to(torch.uint8))
    sizes = []
    encode = towers.vae.encode
    towers.vae.encode = lambda part: sizes.append(len(part)) or encode(part)
    towers.encode_chunk = 2
    torch.testing.assert_close(towers.encode_pixels(pixels.to(torch.uint8)), whole)
    assert sizes == [2, 2, 1]
    with pytest.raises(UnigsError, match="encode_chunk"):
        Compute(encode_chunk=0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_a_checkpoint_that_resumes_exactly(fitted, base, shards, tmp_path, number):
    class Strike(Callback):
        def on_before_backward(self, trainer, *args) -> None:
            if trainer.global_step == 1:
                assert threading.current_thread() is threading.main_thread()
                os.kill(os.getpid(), number)

    saver = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1000)
    guard = Preemption()
    trainer = make_trainer(tmp_path, callbacks=[Strike(), EMA(0.9), guard, saver])
    with pytest.raises(Preempted) as ended:
        trainer.fit(make_model(base), make_data(shards))
    assert ended.value.code == PREEMPTED_EXIT_CODE
    assert guard.preempted
    assert trainer.global_step == 2
    model = make_model(base)
    again = make_trainer(tmp_path, callbacks=[EMA(0.9)])
    again.fit(model, make_data(shards), ckpt_path=tmp_path / "last.ckpt")
    assert again.global_step == 4
    for name, weight in fitted[2].unet.state_dict().items():
        assert torch.equal(weight, model.unet.state_dict()[name]), name


def test_unigs_test_evaluates_the_average_by_the_protocol(fitted, base, shards, tmp_path):
    """Lightning's test loop writes the tables, of the averaged weights where there are some."""
    out = tmp_path / "evaluation"
    report = Evaluation(str(out), name="tiny", samples_per_task=2, sampling=ONE_STEP)
    model = make_model(base)
    trainer = make_trainer(tmp_path, callbacks=[report])
    trainer.test(model, make_data(shards), ckpt_path=fitted[0] / "step=4.ckpt", verbose=False)
    averaged = read_ema(torch.load(fitted[0] / "step=4.ckpt", weights_only=True))
    for name, weight in model.unet.named_parameters():
        assert torch.equal(weight, averaged[name])
    results = json.loads((out / "tiny" / "results.json").read_text())
    assert results["model"] == "tiny"
    assert (out / "tiny" / "pictures.csv").read_text().count("\n") == 1 + 2 * len(TASKS)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_of_half_precision_are_refused_by_name(base, shards, tmp_path, precision):
    trainer = make_trainer(tmp_path, precision=precision)
    with pytest.raises(UnigsError, match=f"got {precision}, at trainer.precision"):
        trainer.fit(make_model(base), make_data(shards))


def test_a_validation_is_no_waiting_for_data(base, shards, tmp_path, monkeypatch):
    """A slow validation between two steps leaves the loader's share as it was."""
    from types import SimpleNamespace

    clock, logged = [0.0], {}
    monkeypatch.setattr("unigs.callbacks.throughput.time.perf_counter", lambda: clock[0])
    callback = Throughput(every_n_steps=2)
    trainer = SimpleNamespace(world_size=1, state=SimpleNamespace(fn="fit"), sanity_checking=False)
    module = SimpleNamespace(
        log=lambda name, value, **more: logged.update({name: value}), device=torch.device("cpu")
    )
    batch = [None] * 3

    def wait(seconds: float) -> None:
        clock[0] += seconds

    callback.on_train_start(trainer, module)
    for place in range(2):
        wait(1.0)  # the loader
        callback.on_train_batch_start(trainer, module, batch, place)
        wait(3.0)  # the step
        if place == 1:
            break
        callback.on_train_batch_end(trainer, module, None, batch, place)
        callback.on_validation_start(trainer, module)
        wait(100.0)
        callback.on_validation_epoch_end(trainer, module)
        callback.on_validation_end(trainer, module)
    callback.on_train_batch_end(trainer, module, None, batch, 1)
    assert logged.pop("perf/peak_memory_gib") > 0
    assert logged == {
        "perf/validation_s": 100.0, "perf/data_wait": 0.25, "perf/wait_s": 2.0,
        "perf/samples_per_s": 0.75, "perf/samples_per_s_device": 0.75,
    }  # fmt: skip


def test_operations_are_those_of_both_passes_and_of_what_is_frozen(base, shards):
    """Against the counter's own sum over a whole step, in which conv_in alone has no input's."""
    dataset = make_data(shards).make_dataset("train", True, dict.fromkeys(TASKS, 1.0))
    batch = stack_samples([dataset[i].sample for i in range(4)])
    model = make_model(base, gradient_checkpointing=True)
    model.configure_model()
    count = FlopCount(model.network)
    model.losses(batch)
    found = count.close()
    model = make_model(base)
    model.configure_model()
    with FlopCounterMode(display=False) as counter:
        sum(part.mean() for part in model.losses(batch).values()).backward()
    assert found == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert found > counter.get_total_flops()
    assert not model.network._forward_hooks


def test_the_share_of_the_devices_peak_is_logged_where_the_peak_is_known(
    base, shards, tmp_path, monkeypatch
):
    assert find_peak(torch.device("cpu")) is None
    monkeypatch.setattr("unigs.callbacks.throughput.find_peak", lambda device: 1e12)
    callback = Throughput(1)
    trainer = make_trainer(tmp_path, max_steps=2, callbacks=[callback])
    trainer.fit(make_model(base), make_data(shards))
    logged = trainer.logged_metrics
    expected = float(logged["perf/samples_per_s"]) * callback._flops / 4 / 1e12
    assert float(logged["perf/mfu"]) == pytest.approx(expected)
    assert callback._flops > 1e7


def test_noise_and_timesteps_follow_the_seed_of_the_data(base, shards, monkeypatch):
    """One home for the seed: the same pictures under another seed get other noise."""
    import unigs.noise
    import unigs.systems.joint.objective as objective

    seeds = []
    for where, name in ((unigs.noise, "draw_noise"), (objective, "draw_timesteps")):
        real = getattr(where, name)
        spy = lambda seed, *more, real=real: seeds.append(seed) or real(seed, *more)
        monkeypatch.setattr(where, name, spy)
    model = make_model(base)
    model.configure_model()
    batches = []
    for seed in (0, 1):
        dataset = make_data(shards, seed=seed).make_dataset("train", True, {"entity": 1.0})
        batches.append(stack_samples([dataset[i].sample for i in range(2)]))
        assert batches[-1].seed == seed
    first = model.losses(batches[0])["image"]
    assert torch.equal(model.losses(batches[0])["image"], first)
    assert set(seeds) == {0}
    batches[0].seed = 1
    assert not torch.equal(model.losses(batches[0])["image"], first)
    assert seeds[-2:] == [1, 1]


@pytest.mark.parametrize(("asked", "painted"), [(None, 100), (30, 30), (101, None)])
def test_as_many_entities_are_painted_as_the_palette_of_the_system_holds(
    base, shards, tmp_path, asked, painted
):
    data = make_data(shards, tasks=TaskOptions(64, max_painted=asked))
    model = make_model(base, palette=Palette("scaled", 5))
    data.trainer = make_trainer(tmp_path)
    data.trainer.strategy.connect(model)
    if painted is None:
        with pytest.raises(UnigsError, match=r"at most 100 entities.*got 101"):
            data.max_painted  # noqa: B018
    else:
        dataset = data.make_dataset("train", True, {"entity": 1.0})
        assert dataset.make_sample.keywords["options"].max_painted == painted
    assert make_data(shards).max_painted == Palette().capacity  # no system, no limit of its own


def test_options_of_before_the_records_are_read(base, tmp_path):
    """A checkpoint's flat hyperparameters give the model that they gave."""
    flat = {
        "base": base, "revision": None, "prediction_type": "sample", "learning_rate": 3e-4,
        "warmup_steps": 7, "decay_steps": None, "betas": (0.8, 0.9), "min_snr_gamma": 5.0,
        "given_stream": "clamp", "sharpen": True, "palette": "scaled", "palette_cells": 5,
        "channels_last": True, "towers_dtype": "bfloat16", "seed": 3,
    }  # fmt: skip
    model = UniGS.rebuild(flat, None, tmp_path)
    assert model.palette == Palette("scaled", 5)
    assert (model.objective.prediction_type, model.objective.min_snr_gamma) == ("sample", 5.0)
    assert (model.optimizer.learning_rate, model.optimizer.warmup_steps) == (3e-4, 7)
    assert (model.compute.channels_last, model.compute.towers_dtype) == (True, "bfloat16")
    assert model.sampling == {"all": Sampling(given_stream="clamp", guided_filter=True)}
    again = UniGS.rebuild(dict(model.hparams), None, tmp_path)
    assert dict(again.hparams) == dict(model.hparams)


def test_a_run_of_before_the_records_is_the_same_run(base, shards, tmp_path):
    model = make_model(base, palette=Palette("scaled", 5))
    run = describe_run(make_trainer(tmp_path), model, make_data(shards))
    saved = {"system": "unigs.training.UniGS", "model.palette": "scaled", "model.palette_cells": 5}
    assert not run.list_changes(saved, "refused")
    saved |= {"model.palette_cells": 4, "model.learning_rate": 1.0}
    assert run.list_changes(saved, "refused") == ["model.palette.cells 5 (saved with 4)"]
    assert [words.split()[0] for words in run.list_changes(saved, "taken")] == [
        "model.optimizer.learning_rate"
    ]
    with pytest.raises(OtherRun, match="system"):
        run.refuse_other({"system": "unigs.judge.Judge"}, "the folder")


def test_validation_decodes_with_both_decoders_in_one_call_each(base, shards, monkeypatch):
    import unigs.codec.decode as decode

    calls, shown, logged = [], [], {}
    for name in ("decode_refined", "decode_dichotomy"):
        real = getattr(decode, name)
        spy = lambda maps, *a, _name=name, _real=real, **k: (
            calls.append((_name, len(maps))) or _real(maps, *a, **k)
        )
        monkeypatch.setattr(decode, name, spy)
    monkeypatch.setattr(
        "unigs.callbacks.validation.draw_sheet", lambda titles, rows: shown.append((titles, rows))
    )
    callback = SampledValidation(ONE_STEP, pictures=1)
    trainer = make_trainer(None, callbacks=[callback], limit_val_batches=1.0)
    model = make_model(base)
    monkeypatch.setattr(
        type(model), "log", lambda self, name, value, **k: logged.update({name: value})
    )
    trainer.validate(model, make_data(shards, samples_per_task=2, batch_size=2), verbose=False)
    assert sorted(calls) == [("decode_dichotomy", 2)] * 4 + [("decode_refined", 2)] * 4
    for task in TASKS:
        assert {f"val/{task}/miou", f"val/{task}/miou_dichotomy"} <= logged.keys()
    for titles, rows in shown:
        assert titles == [
            "condition",
            "image",
            "colormap",
            "decoded masks",
            "dichotomy",
            "ground truth",
        ]
        assert all(len(tiles) == len(titles) for _, tiles in rows)
