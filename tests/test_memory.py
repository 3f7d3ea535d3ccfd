"""What a step of each overlay of the joint model takes on its GPU, at 512 px, by tensors that hold
nothing: every storage of a GPU that is alive at a time is summed.

Left out: the CUDA context (about 0.5 GiB), workspaces of kernels, what the allocator cannot fill.
"""

from __future__ import annotations

import math
import re
import sys
import weakref
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel

from unigs.callbacks import EMA
from unigs.systems import UniGS
from unigs.systems.adapters import Adapters
from unigs.systems.joint.base import Components
from unigs.systems.joint.conditions import Conditions
from unigs.systems.joint.denoiser import denoise
from unigs.systems.joint.module import Compute
from unigs.systems.joint.presets import PRESETS, vae_config
from unigs.systems.joint.towers import FrozenTowers
from unigs.systems.system import Optimizer

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = [
    ("joint", 32, 80), ("gpu-24gb", 4, 24), ("gpu-24gb-8bit", 8, 24), ("gpu-16gb", 4, 16),
    ("lora", 8, 12),
]  # fmt: skip
"""Name, samples a GPU, its memory."""

RESERVE_GIB = 1.5
"""For what is left out."""

PICTURES_A_SAMPLE = 2.3
"""That the VAE encodes, at the paper's ratios of tasks."""


class Living(TorchDispatchMode):
    """Bytes of the storages that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return out

    def leave_out(self, tensors) -> None:
        """What lies in the host's memory."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def _note(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.now -= size


class AdamW8bit(torch.optim.Optimizer):
    """State as bitsandbytes keeps it: two bytes a weight, two scales a block of 256."""

    def __init__(self, weights, **told) -> None:
        super().__init__(weights, told)

    def step(self, closure=None) -> None:
        for weight in (w for g in self.param_groups for w in g["params"] if w.grad is not None):
            count = weight.numel()
            blocks = math.ceil(count / 256)
            self.state[weight] = [torch.empty(count, dtype=torch.uint8) for _ in range(2)]
            self.state[weight] += [torch.empty(blocks) for _ in range(2)]


def read_recipe(name: str) -> dict:
    """``joint.yaml`` with an overlay, a dictionary merged into the other."""

    def lay(under, over):
        if isinstance(under, dict) and isinstance(over, dict):
            return {k: lay(under.get(k), over[k]) if k in over else under[k] for k in under | over}
        return over

    files = [CONFIGS / "joint.yaml", *([CONFIGS / f"{name}.yaml"] if name != "joint" else [])]
    told: dict = {}
    for file in files:
        told = lay(told, yaml.safe_load(file.read_text()))
    return told


def load_hollow(*_) -> Components:
    """The true shapes of Stable Diffusion 1.5 inpainting."""
    preset = PRESETS["sd15"]
    text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, **preset["text_encoder"]))
    vae = AutoencoderKL(**vae_config("sd15"))
    unet = UNet2DConditionModel(**preset["unet"])
    return Components(unet, FrozenTowers(vae, text, None), DDPMScheduler(prediction_type="epsilon"))


def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **_):
    """Attention as a GPU does it, without a matrix of all pairs."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    return flash(query, key, value, 0.0, is_causal, False)[0]


def apply_anew(self, fn, recurse=True):
    """``Module._apply`` by new parameters; the true one cannot swap those that are watched."""
    for part in self.modules():
        for store in (part._parameters, part._buffers):
            for name, old in store.items():
                if old is not None:
                    new = fn(old.detach())
                    kept = store is part._buffers
                    store[name] = new if kept else torch.nn.Parameter(new, old.requires_grad)
    return self


@pytest.fixture
def hollow(monkeypatch):
    """Fake tensors of a GPU that is not there."""
    monkeypatch.setattr("unigs.systems.joint.module.load_components", load_hollow)
    for name in ("uniform_", "normal_"):
        monkeypatch.setattr(torch.Tensor, name, lambda self, *_, **__: self)
    monkeypatch.setattr(torch.nn.Module, "_apply", apply_anew)
    for name in ("group_norm", "layer_norm"):  # as autocast does on a GPU and not on a CPU
        real = getattr(torch.nn.functional, name)
        widen = lambda x, size, weight=None, bias=None, eps=1e-5, real=real: real(
            x.float(), size, weight.float(), bias.float(), eps
        )
        monkeypatch.setattr(torch.nn.functional, name, widen)
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", attend)


def measure(name: str) -> dict[str, float]:
    """GiB at rest and at most, of a step; samples a GPU; share of the weights trained."""
    told = read_recipe(name)
    args, loading = told["model"]["init_args"], told["data"]["init_args"]["loading"]
    devices = told["trainer"]["devices"]
    count = loading["global_batch_size"] // (8 if devices == "auto" else devices)
    averages = next(c for c in told["trainer"]["callbacks"] if c["class_path"].endswith("EMA"))
    adapters = Adapters(**args["adapters"]) if "adapters" in args else None
    model = UniGS(
        "hollow", optimizer=Optimizer(**args["optimizer"]), compute=Compute(**args["compute"]),
        adapters=adapters,
    )  # fmt: skip
    ema = EMA(**averages["init_args"])
    trainer = SimpleNamespace(global_step=0)
    with FakeTensorMode():
        with Living() as living:
            model.configure_model()
        model.unet.train()
        with living if ema.device is None else nullcontext():
            ema.on_fit_start(trainer, model)
        living.leave_out(ema.state_dict()["weights"].values() if ema.device else ())
        with living:
            ema.on_train_start(trainer, model)
            optimizer = model.configure_optimizers()["optimizer"]
            for weight in model.unet.parameters():  # a step before, whose gradients stay
                weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
            optimizer.step()
            step(model, count)
            trainer.global_step += 1
            ema.on_train_batch_end(trainer, model, None, None, 0)
        rest = living.now
    weights = [(w.numel(), w.requires_grad) for w in model.unet.parameters()]
    share = sum(n for n, trained in weights if trained) / sum(n for n, _ in weights)
    return {"rest": rest / 2**30, "most": living.most / 2**30, "samples": count, "share": share}


def step(model: UniGS, count: int) -> None:
    """Encode, denoise and look back; gradients of the step before are there, as in Lightning."""
    pictures = torch.zeros(math.ceil(PICTURES_A_SAMPLE * count), 3, 512, 512, dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        model.towers.encode_pixels(pictures[: model.compute.encode_chunk])  # the others alike
        latents = torch.zeros(count, 4, 64, 64)
        text = model.towers.text_encoder(torch.zeros(count, 77, dtype=torch.long))[0].float()
        conditions = Conditions(
            torch.zeros(count, 1, 64, 64), latents, text, torch.zeros(count, dtype=torch.long)
        )
        noisy = torch.cat([latents, latents], 1)
        found = denoise(model.unet, noisy, torch.zeros(count, dtype=torch.long), conditions)
        loss = (found.float() - noisy).square().mean()
    loss.backward()


def stand_in(monkeypatch, name: str) -> None:
    """The library of 8-bit optimisers, for the recipes that ask for it."""
    if read_recipe(name)["model"]["init_args"]["optimizer"].get("kind") == "adamw8bit":
        library, room = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
        room.AdamW8bit = AdamW8bit
        monkeypatch.setitem(sys.modules, "bitsandbytes", library)
        monkeypatch.setitem(sys.modules, "bitsandbytes.optim", room)


def read_page() -> dict[str, float]:
    """Memory by overlay, GiB, as the page tells it."""
    page = (CONFIGS.parent / "docs" / "scale.md").read_text()
    rows = re.findall(r"^\|[^|]*\| `([\w-]+)\.yaml` \|[^|]*\| ([\d.]+) \|", page, re.M)
    return {name: float(memory) for name, memory in rows}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "samples", "card_gib"), RECIPES)
def test_a_step_fits_its_gpu(name, samples, card_gib, hollow, monkeypatch):
    stand_in(monkeypatch, name)
    found = measure(name)
    print(name, found)
    assert found["samples"] == samples
    assert found["most"] + RESERVE_GIB <= card_gib
    assert read_page()[name] == pytest.approx(found["most"], abs=0.06)
    adapted = name == "lora"
    assert found["share"] == 1 or (adapted and 0.02 < found["share"] < 0.04)


@pytest.mark.parametrize(("name", "samples", "card_gib"), RECIPES)
def test_every_recipe_keeps_the_papers_batch_and_its_validations(name, samples, card_gib):
    """256 samples an optimiser step, a validation every 2000 of them; all parts of joint.yaml."""
    told, joint = read_recipe(name), read_recipe("joint")
    windows = told["trainer"].get("accumulate_grad_batches", 1)
    assert told["data"]["init_args"]["loading"]["global_batch_size"] * windows == 256
    assert told["trainer"]["val_check_interval"] == 2000 * windows
    kinds = [[c["class_path"] for c in one["trainer"]["callbacks"]] for one in (told, joint)]
    assert kinds[0] == kinds[1]
