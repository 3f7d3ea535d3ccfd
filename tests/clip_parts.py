"""Small clips, their shards, and a small Pix2Seq-D that looks back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from builders import build_data

from unigs.codec.analog_bits import BitCode, decode_bits
from unigs.data import UniGSData
from unigs.shards import write_shards
from unigs.synthetic import write_clips
from unigs.systems import Pix2SeqD
from unigs.systems.backbone import Backbone
from unigs.systems.pix2seq_d.diffusion import BitSampling
from unigs.systems.pix2seq_d.network import Network
from unigs.systems.pix2seq_d.objective import Objective
from unigs.tasks import ClassTable, TaskOptions

CODE = BitCode(2, 4, 0.3)
PICTURES = Network(
    Backbone(width=8), divisor=1, features=8, tokens=32, encoder_layers=1, base=8,
    multipliers=(1, 2), decoder_layers=1, normalize_noisy=True,
)  # fmt: skip
CLIPS = replace(PICTURES, past=2)
QUICK = BitSampling(steps=3, later_steps=2, least_px=1)
SIDE = 32


def write_davis(root: Path, **changes) -> Path:
    """Clips on disk; the root of their shards."""
    options = {"clips": 3, "val_clips": 2, "frames": 5, "size_px": 32}
    write_clips(root / "davis", **{**options, **changes})
    write_shards(out=str(root / "shards"), workers=1, samples_per_shard=4, davis=root / "davis")
    return root / "shards"


def make_data(shards: Path, **changes) -> UniGSData:
    options = {
        "tasks": TaskOptions(SIDE, max_painted=15),
        "task_ratios": {"entity": 1.0},
        "source_weights": {"entity": {"davis": 1.0}},
        "global_batch_size": 2,
        "steps_per_epoch": 2,
        "num_workers": 0,
    }
    return build_data(str(shards), **{**options, **changes})


def make_dataset(shards: Path, model: Pix2SeqD):
    data = make_data(shards)
    data.trainer = SimpleNamespace(lightning_module=model)
    return data.make_dataset("train", True, {"entity": 1.0})


def build(seed: int = 3, **changes) -> Pix2SeqD:
    """A model that knows its class and has its network, with no weight at 0."""
    options = {"code": CODE, "network": CLIPS, "sampling": QUICK}
    options["objective"] = Objective(ids="shuffle", past_dropped=0.0)
    model = Pix2SeqD(**{**options, **changes})
    model.take_data(ClassTable(("object",), (True,)), SIDE)
    torch.manual_seed(seed)
    model.configure_model()
    if model.start_from is None:
        torch.nn.init.normal_(model.denoiser.decoder.conv_in.weight, std=0.3)
    return model.eval()


def say(bits: torch.Tensor) -> torch.Tensor:
    """The logits of one who is sure of bits [B, C, h, w]."""
    groups = zip(decode_bits(bits, CODE), (CODE.class_bits, CODE.id_bits))
    hot = [torch.nn.functional.one_hot(one, 2**count) for one, count in groups]
    return torch.cat(hot, -1).permute(0, 3, 1, 2) * 200.0
