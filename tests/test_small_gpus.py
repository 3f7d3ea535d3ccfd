"""Training in less memory: adapters, an optimiser of 8 bits, an average in the host's memory."""

from __future__ import annotations

import signal
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from builders import build_data, build_unigs
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from unigs.callbacks import EMA, SampledValidation
from unigs.checkpoints import NotFinite, read_checkpoint, read_ema
from unigs.codec import Palette
from unigs.promises.preemption import Preempted
from unigs.promises.resume import describe_run
from unigs.records import UnigsError
from unigs.systems.adapters import Adapters, adapt, merge
from unigs.systems.joint.conditions import Conditions
from unigs.systems.joint.denoiser import denoise, merge_unet
from unigs.systems.joint.pipeline import UniGSPipeline
from unigs.systems.load import load_system
from unigs.systems.sampling import Sampling
from unigs.systems.system import Optimizer
from unigs.tasks import TaskOptions
from unigs.verbs.export import export_pipeline

LOW = Adapters(rank=4, base_dtype="float32")


def make_data(shards):
    return build_data(
        shards, tasks=TaskOptions(32), global_batch_size=4, steps_per_epoch=3, num_workers=0,
        samples_per_task=1, batch_size=1,
    )  # fmt: skip


def make_model(base, adapters=LOW, **options):
    told = {"learning_rate": 1e-2, "warmup_steps": 1, "palette": Palette(cells=7), **options}
    return build_unigs(base, adapters=adapters, **told)


def make_trainer(folder, *callbacks, **changes):
    saver = ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=2, filename="{step}")
    options = {"limit_val_batches": 0, "max_steps": 4, **changes}
    return Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        callbacks=[*callbacks, saver], **options,
    )  # fmt: skip


def list_frozen(model):
    return {n: w.detach().clone() for n, w in model.unet.named_parameters() if not w.requires_grad}


def disturb(network) -> None:
    """Adapters that add something: the second matrix begins with zeros."""
    generator = torch.Generator().manual_seed(3)
    for weight in network.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.05, generator=generator)


@pytest.fixture(scope="module")
def fitted(base, shards, tmp_path_factory):
    """Four steps of adapters with their average and sampled validation."""
    folder = tmp_path_factory.mktemp("adapters")
    fresh = make_model(base)
    fresh.configure_model()
    before = list_frozen(fresh)
    model, ema = make_model(base), EMA(0.9)
    validation = SampledValidation(Sampling(num_inference_steps=1), pictures=1)
    trainer = make_trainer(folder, ema, validation, limit_val_batches=1)
    trainer.fit(model, make_data(shards))
    return SimpleNamespace(folder=folder, model=model, before=before, ema=ema, trainer=trainer)


# --- adapters ---


def test_adapters_and_what_stable_diffusion_lacks_are_trained_and_nothing_else(fitted):
    trained = {n for n, w in fitted.model.unet.named_parameters() if w.requires_grad}
    assert {n for n in trained if ".lora_" not in n} == {
        "conv_in.weight", "conv_in.bias", "conv_out.weight", "conv_out.bias",
        "class_embedding.weight",
    }  # fmt: skip
    assert {n.split(".lora_")[0].rpartition("attn1.")[2] for n in trained if "attn1" in n} == {
        "to_q", "to_k", "to_v", "to_out.0"
    }  # fmt: skip
    after = list_frozen(fitted.model)
    assert after.keys() == fitted.before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in fitted.before.items())
    fresh = make_model(fitted.model.base)
    fresh.configure_model()
    begun = dict(fresh.unet.named_parameters())
    moved = [n for n, w in fitted.model.unet.named_parameters() if not torch.equal(w, begun[n])]
    assert set(moved) == trained


def test_merged_gives_what_adapted_gives(base):
    """In float32, of a base in bfloat16 as well: the merged weights are not rounded to it."""
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 8, 8, 8, generator=generator)
    conditions = Conditions(
        mask=torch.ones(2, 1, 8, 8), context=torch.randn(2, 4, 8, 8, generator=generator),
        text=torch.randn(2, 77, 64, generator=generator), task=torch.tensor([0, 3]),
    )  # fmt: skip
    for dtype in ("float32", "bfloat16"):
        model = make_model(base, Adapters(rank=4, scale=0.5, base_dtype=dtype))
        model.configure_model()
        stored = dict(model.unet.state_dict())
        key = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
        assert stored[f"{key}.base_layer.weight"].dtype == getattr(torch, dtype)
        assert stored[f"{key}.lora_A.default.weight"].dtype == torch.float32
        disturb(model.unet)
        stock = merge_unet(model.unet)
        stored = {name: weight.clone() for name, weight in model.unet.state_dict().items()}
        with torch.no_grad():
            merged = denoise(stock, noisy, torch.tensor([10, 500]), conditions)
            adapted = denoise(model.unet.float(), noisy, torch.tensor([10, 500]), conditions)
        torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-5)
        assert all(torch.equal(w, stored[n].float()) for n, w in model.unet.state_dict().items())
        plain = make_model(base, None)
        plain.configure_model()
        assert stock.state_dict().keys() == plain.unet.state_dict().keys()
        with torch.no_grad():
            other = denoise(plain.unet, noisy, torch.tensor([10, 500]), conditions)
        assert (other - merged).abs().max() > 1e-3


def test_adapters_begin_as_the_base_whatever_the_global_seed(base):
    plain = make_model(base, None)
    plain.configure_model()
    begun = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = make_model(base)
        model.configure_model()
        begun.append(model.unet.state_dict())
        merged = merge(model.unet)
        assert all(torch.equal(merged[n], w) for n, w in plain.unet.state_dict().items())
    assert all(torch.equal(begun[1][name], weight) for name, weight in begun[0].items())


def test_adapters_resume_bit_for_bit_with_their_average(fitted, base, shards, tmp_path):
    model, ema = make_model(base), EMA(0.9)
    trainer = make_trainer(tmp_path, ema)
    trainer.fit(model, make_data(shards), ckpt_path=fitted.folder / "step=2.ckpt")
    assert trainer.global_step == 4
    for name, weight in fitted.model.unet.state_dict().items():
        assert torch.equal(weight, model.unet.state_dict()[name]), name
    average = fitted.ema.state_dict()["weights"]
    trained = {n for n, w in model.unet.named_parameters() if w.requires_grad}
    assert set(average) == set(ema.state_dict()["weights"]) == trained
    for name, weight in ema.state_dict()["weights"].items():
        assert torch.equal(weight, average[name]), name


def test_adapters_are_exported_as_a_stock_folder_that_needs_no_peft(fitted, tmp_path, monkeypatch):
    checkpoint = str(fitted.folder / "step=4.ckpt")
    export_pipeline(checkpoint, str(tmp_path / "out"))
    system = load_system(checkpoint)
    expected = merge(system.unet)
    averaged = read_ema(read_checkpoint(checkpoint))
    assert torch.equal(expected["conv_in.weight"], averaged["conv_in.weight"])
    monkeypatch.setattr("unigs.systems.adapters.import_peft", pytest.fail)
    unet = UniGSPipeline.load(str(tmp_path / "out")).unet
    assert unet.state_dict().keys() == expected.keys()
    assert all(torch.equal(w, expected[n]) for n, w in unet.state_dict().items())


def test_adapters_need_peft(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UnigsError, match=r"expected peft.*pip install 'unigs\[adapters\]'"):
        make_model(base).configure_model()


def test_validation_samples_the_adapted_network_and_keeps_no_copy(fitted):
    assert [name for name in fitted.trainer.logged_metrics if name.endswith("/miou")]
    callback = next(c for c in fitted.trainer.callbacks if isinstance(c, SampledValidation))
    assert not [v for v in vars(callback).values() if hasattr(v, "pipeline")]


def test_adapters_in_half_precision_train_in_a_mixed_one_alone(base, shards, tmp_path):
    model = make_model(base, Adapters(rank=2))
    with pytest.raises(UnigsError, match=r"got 32-true, at trainer\.precision.*bfloat16"):
        make_trainer(tmp_path).fit(model, make_data(shards))
    model = make_model(base, Adapters(rank=2))
    trainer = make_trainer(tmp_path, EMA(0.9), precision="bf16-mixed", max_steps=2)
    trainer.fit(model, make_data(shards))
    assert 0 < float(trainer.logged_metrics["train/loss"]) < 10
    dtypes = {w.requires_grad: w.dtype for w in model.unet.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_a_step_of_adapters_that_is_not_finite_stops_the_run(base, shards, tmp_path):
    model = make_model(base)
    model.configure_model()
    with torch.no_grad():
        model.unet.conv_in.weight.fill_(torch.nan)
    with pytest.raises(NotFinite):
        make_trainer(tmp_path).fit(model, make_data(shards))


def test_a_run_keeps_its_adapters_and_its_kind_of_optimiser(fitted, base, shards, tmp_path):
    other = make_model(base, Adapters(rank=5, base_dtype="float32"), kind="adamw8bit")
    run = describe_run(make_trainer(tmp_path), other, make_data(shards))
    saved = read_checkpoint(fitted.folder / "step=4.ckpt")["unigs_run"]
    changed = [words.split()[0] for words in run.list_changes(saved, "refused")]
    assert changed == [
        "model.adapters.rank",
        "model.optimizer.kind",
    ]
    whole = make_model(base, None)
    with pytest.raises(UnigsError, match=r"to_k\.base_layer\.weight of shape none"):
        whole.on_load_checkpoint(read_checkpoint(fitted.folder / "step=4.ckpt"))


def test_layers_that_are_none_and_ranks_of_none_are_refused(base):
    model = make_model(base, Adapters(layers=("to_x",), base_dtype="float32"))
    with pytest.raises(UnigsError, match=r"to_x.*at model\.adapters\.layers"):
        model.configure_model()
    for options in ({"rank": 0}, {"layers": ()}):
        with pytest.raises(UnigsError, match=r"at model\.adapters"):
            Adapters(**options)


def test_any_network_can_be_adapted():
    """Nothing in it is of the joint model; a convolution too."""
    network = torch.nn.ModuleDict(
        {"a": torch.nn.Conv2d(3, 4, 3), "b": torch.nn.Linear(5, 6), "c": torch.nn.Linear(6, 2)}
    )
    before = {name: w.clone() for name, w in network.state_dict().items()}
    adapt(network, Adapters(rank=2, layers=("a", "b"), base_dtype="float32"), ["c"])
    assert all(torch.equal(w, before[n]) for n, w in merge(network).items())
    disturb(network)
    merged, x = merge(network), torch.ones(1, 3, 5, 5)
    again = torch.nn.functional.conv2d(x, merged["a.weight"], merged["a.bias"])
    torch.testing.assert_close(again, network["a"](x))
    assert not network["b"].base_layer.weight.requires_grad
    assert network["c"].weight.requires_grad


# --- an optimiser of 8 bits ---


def test_eight_bits_need_bitsandbytes(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    weights = [torch.nn.Parameter(torch.zeros(1))]
    with pytest.raises(UnigsError, match=r"expected bitsandbytes.*at model\.optimizer\.kind"):
        Optimizer(kind="adamw8bit").build(weights)


def test_eight_bits_are_asked_for_with_the_same_options(base, shards, tmp_path, monkeypatch):
    """A stand-in of the library, which trains: rate and resume are those of the plain one."""

    class AdamW8bit(torch.optim.AdamW):
        pass

    library, rooms = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    rooms.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", rooms)
    told = {"kind": "adamw8bit", "betas": (0.8, 0.95), "weight_decay": 0.2}
    model = make_model(base, None, **told)
    trainer = make_trainer(tmp_path / "a", gradient_clip_val=1.0)
    trainer.fit(model, make_data(shards))
    optimizer = model.optimizers(use_pl_optimizer=False)
    assert type(optimizer) is AdamW8bit
    (group,) = optimizer.param_groups
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.95), 0.2)
    again = make_model(base, None, **told)
    make_trainer(tmp_path / "b").fit(
        again, make_data(shards), ckpt_path=tmp_path / "a" / "step=2.ckpt"
    )


# --- an average in the host's memory ---


def test_an_average_in_the_hosts_memory_has_the_same_bits(base, shards, tmp_path):
    ends, losses = [], []
    for device in (None, "cpu"):
        ema = EMA(0.9, device)
        model = make_model(base, None)
        trainer = make_trainer(
            tmp_path / str(device), ema, limit_val_batches=1, val_check_interval=2,
            check_val_every_n_epoch=None,
        )  # fmt: skip
        trainer.fit(model, make_data(shards))
        ends.append((ema.state_dict()["weights"], model.unet.state_dict()))
        losses.append({k: float(v) for k, v in trainer.logged_metrics.items() if "val" in k})
    for mine, others in zip(*ends):
        assert all(torch.equal(weight, others[name]) for name, weight in mine.items())
    assert losses[0] == losses[1]
    assert losses[0]


def test_an_average_in_the_hosts_memory_is_refused_where_weights_are_sharded(monkeypatch):
    """Parameters stand for shards, which need a process group."""
    monkeypatch.setattr("unigs.callbacks.averaging.DTensor", torch.nn.Parameter)
    module = SimpleNamespace(network=torch.nn.Linear(2, 2))
    with pytest.raises(UnigsError, match="beside the weights' shards, got 'cpu', at the device of"):
        EMA(0.9, "cpu").on_fit_start(None, module)


@pytest.mark.parametrize("number", range(4))
def test_a_signal_in_the_middle_of_a_swap_leaves_the_trained_weights(monkeypatch, number):
    layers = (torch.nn.Linear(1, 1) for _ in range(2))
    module = SimpleNamespace(network=torch.nn.Sequential(*layers))
    named = dict(module.network.named_parameters())
    for weight in named.values():
        weight.data.fill_(1)
    ema = EMA(0.9, "cpu")
    ema.load_state_dict({"weights": {n: torch.full_like(w, 9) for n, w in named.items()}})
    ema.on_fit_start(None, module)
    copies, copy = [], torch.Tensor.copy_

    def strike(self, *others):
        copies.append(1)
        if len(copies) == 2 * number + 2:
            signal.raise_signal(signal.SIGUSR1)
        return copy(self, *others)

    def end(*_):
        raise Preempted("validation")

    before = signal.signal(signal.SIGUSR1, end)
    monkeypatch.setattr(torch.Tensor, "copy_", strike)
    try:
        with pytest.raises(Preempted):
            ema.on_validation_start(None, module)
        ema.on_exception(None, module, Preempted("validation"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert {weight.item() for weight in named.values()} == {1.0}
    assert {float(one.sum()) for one in ema.state_dict()["weights"].values()} == {9.0}
