"""DALL-E's posterior: converted from pickles that nothing runs, equal to what is in them."""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from gss_parts import TABLE
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from convert_dalle import convert, read_pickle

from unigs.records import UnigsError
from unigs.systems.gss.coder import Coder, load_coder, save_coder
from unigs.systems.gss.dalle import DECODER, MODEL_TYPE
from unigs.systems.gss.painting import choose_painting
from unigs.systems.gss.posterior import load_posterior
from unigs.systems.pixels import to_uint8

CODES, HIDDEN, CHANNELS = 32, 8, 6


class Conv2d(nn.Module):
    """As in the package: weights called w and b."""

    def __init__(self, n_in, n_out, kw):
        super().__init__()
        self.w = nn.Parameter(0.3 * torch.randn(n_out, n_in, kw, kw))
        self.b = nn.Parameter(0.3 * torch.randn(n_out))
        self.device = torch.device("cpu")

    def forward(self, x):
        return nn.functional.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    def __init__(self, n_in, n_out, kernels):
        super().__init__()
        hidden = n_out // 4
        self.post_gain = 1 / 64
        self.id_path = nn.Identity() if n_in == n_out else Conv2d(n_in, n_out, 1)
        widths = (n_in, hidden, hidden, hidden, n_out)
        path = OrderedDict()
        for k in range(4):
            path[f"relu_{k + 1}"] = nn.ReLU()
            path[f"conv_{k + 1}"] = Conv2d(widths[k], widths[k + 1], kernels[k])
        self.res_path = nn.Sequential(path)

    def forward(self, x):
        return self.id_path(x) + self.post_gain * self.res_path(x)


class EncoderBlock(Block):
    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out, (3, 3, 3, 1))


class DecoderBlock(Block):
    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out, (1, 3, 3, 3))


class Whole(nn.Module):
    def __init__(self, first, kind, widths, between, last):
        super().__init__()
        blocks = OrderedDict(input=first)
        for k, (a, b) in enumerate(pairwise(widths), 1):
            group = OrderedDict(block_1=kind(a, b), block_2=kind(b, b))
            if k < 4:
                group[between[0]] = between[1]
            blocks[f"group_{k}"] = nn.Sequential(group)
        blocks["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=last))
        self.blocks = nn.Sequential(blocks)

    def forward(self, x):
        return self.blocks(x)


class Encoder(Whole):
    pass


class Decoder(Whole):
    pass


PACKAGE = {
    "dall_e.utils": (Conv2d,),
    "dall_e.encoder": (Encoder, EncoderBlock),
    "dall_e.decoder": (Decoder, DecoderBlock),
}


@pytest.fixture(scope="module")
def pickles(tmp_path_factory):
    """The two modules, and the files in which the package has them; it is not importable after."""
    torch.manual_seed(0)
    h, pool, up = HIDDEN, nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="nearest")
    first, last = Conv2d(3, h, 7), Conv2d(8 * h, CODES, 1)
    encoder = Encoder(first, EncoderBlock, (h, h, 2 * h, 4 * h, 8 * h), ("pool", pool), last)
    first, last = Conv2d(CODES, CHANNELS, 1), Conv2d(h, 6, 1)
    widths = (CHANNELS, 8 * h, 4 * h, 2 * h, h)
    decoder = Decoder(first, DecoderBlock, widths, ("upsample", up), last)
    folder = tmp_path_factory.mktemp("pickles")
    for module, classes in PACKAGE.items():
        sys.modules[module] = made = ModuleType(module)
        for kind in classes:
            kind.__module__ = module
            setattr(made, kind.__name__, kind)
    sys.modules["dall_e"] = ModuleType("dall_e")
    torch.save(encoder, folder / "encoder.pkl")
    torch.save(decoder, folder / "decoder.pkl")
    for module in ("dall_e", *PACKAGE):
        del sys.modules[module]
    return encoder, decoder, folder


@pytest.fixture(scope="module")
def folder(pickles) -> Path:
    out = pickles[2] / "posterior"
    convert(pickles[2] / "encoder.pkl", pickles[2] / "decoder.pkl", out)
    return out


def test_the_posterior_is_the_published_modules(pickles, folder):
    """Pixels by 0.8 x + 0.1, arg-max, one-hot codes, the sigmoid of three channels, back."""
    encoder, decoder, _ = pickles
    posterior = load_posterior(str(folder))
    maskige = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    with torch.no_grad():
        codes = encoder(0.8 * maskige.double().float() / 255 + 0.1).argmax(1)
        one_hot = nn.functional.one_hot(codes, CODES).permute(0, 3, 1, 2).float()
        pixels = ((decoder(one_hot)[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1)
    assert len(codes.unique()) > 1
    assert (posterior.stride, posterior.size) == (8, CODES)
    assert torch.equal(posterior.codes(maskige), codes)
    assert posterior.decode(codes).shape == maskige.shape
    difference = posterior.decode(codes).int() - (255 * pixels).round().int()
    assert int(difference.abs().max()) <= 1
    assert not any(weight.requires_grad for weight in posterior.parameters())


def test_a_draw_is_decoded_as_its_code(folder):
    posterior = load_posterior(str(folder))
    pixels = (torch.rand(1, 3, 16, 16) * 2 - 1).requires_grad_()
    codes = torch.randint(CODES, (1, 2, 2))
    told = 1e4 * nn.functional.one_hot(codes, CODES).permute(0, 3, 1, 2)
    drawn = posterior.pass_through(pixels, told)
    assert torch.equal(to_uint8(drawn), posterior.decode(codes))


def test_a_stage_keeps_it_in_its_folder(folder, tmp_path):
    coder = Coder(load_posterior(str(folder)), choose_painting(TABLE, "farthest"))
    save_coder(coder, "TF", str(tmp_path / "tf"))
    again, _ = load_coder(str(tmp_path / "tf"))
    assert again.posterior.describe()["model_type"] == MODEL_TYPE
    classes = torch.randint(4, (1, 16, 16))
    assert torch.equal(again.reconstruct(classes, 2), coder.reconstruct(classes, 2))


def test_nothing_in_a_pickle_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a": Trap()}, tmp_path / "trap.pkl")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": 1}))
    for name in ("trap.pkl", "plain.pkl"):
        with pytest.raises(UnigsError, match=rf"expected a .*module.*{name}"):
            read_pickle(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_other_files_and_folders_are_named(pickles, folder, tmp_path):
    encoder, decoder = (pickles[2] / f"{name}.pkl" for name in ("encoder", "decoder"))
    with pytest.raises(UnigsError, match=r"expected a new folder, .* at .*posterior"):
        convert(encoder, decoder, folder)
    with pytest.raises(UnigsError, match=r"expected every weight .* at .*decoder.pkl"):
        convert(decoder, decoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    weights = load_file(folder / DECODER)
    (tmp_path / "bad").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bad" / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UnigsError, match=r"decoder.safetensors"):
        load_posterior(str(tmp_path / "bad"))
    name = "blocks.output.conv.bias"
    save_file({**weights, name: torch.zeros(3)}, tmp_path / "bad" / DECODER)
    with pytest.raises(UnigsError, match=rf"expected {name} of shape \(6,\), got \(3,\), at"):
        load_posterior(str(tmp_path / "bad"))
    weights.pop(name)
    save_file(weights, tmp_path / "bad" / DECODER)
    with pytest.raises(UnigsError, match=rf"got none of {name}, at .*decoder.safetensors"):
        load_posterior(str(tmp_path / "bad"))
