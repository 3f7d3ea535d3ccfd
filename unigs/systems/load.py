"""A checkpoint or a folder -> the system, or the predictor, that it holds.

The tables name every system of the house; a new one is a row in each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from unigs.checkpoints import RUN, read_checkpoint, read_ema
from unigs.records import UnigsError
from unigs.systems.gss.module import GSS
from unigs.systems.gss.predictor import FOLDER, load_gss
from unigs.systems.joint.module import UniGS
from unigs.systems.joint.predictor import load_joint
from unigs.systems.pix2seq_d.module import Pix2SeqD
from unigs.systems.pix2seq_d.predictor import KIND, load_bits
from unigs.systems.sampling import Sampling
from unigs.systems.system import System
from unigs.weights import INDEX, check_finite, in_words, locate_shipped, read_config

SYSTEMS: dict[str, type[System]] = {"UniGS": UniGS, "Pix2SeqD": Pix2SeqD, "GSS": GSS}
"""By the name that a checkpoint keeps of its system."""

FOLDERS: dict[str, Callable[..., Any]] = {
    "UniGSPipeline": load_joint,
    KIND: load_bits,
    FOLDER: load_gss,
}
"""Loaders by the class that a folder's index names."""


def load_system(path: str, ema: bool = True, base: str | None = None) -> System:
    """The module of a training checkpoint, in evaluation mode; nothing in the file is run.

    Args:
        path: a ``.ckpt`` file of ``unigs fit``.
        ema: take the averaged weights where the checkpoint holds them.
        base: the base it was trained from; None takes the one that the checkpoint names, which is
            data: looked for here and in the hub's local cache, and never fetched.

    Raises:
        UnigsError: no such file, a damaged or foreign one, its base not found, or weights that are
            of another model or not finite.
    """
    checkpoint, where = read_checkpoint(path), Path(path)
    name = str(checkpoint.get(RUN, {}).get("system", "UniGS")).rpartition(".")[2]
    if name not in SYSTEMS:
        raise UnigsError(f"expected a checkpoint of {', '.join(SYSTEMS)}, got {name}, at {where}")
    with in_words("a checkpoint of unigs fit", where):
        stored = checkpoint["hyper_parameters"].items()
        settings = {k: v for k, v in stored if not k.startswith("_")}  # LightningCLI adds some
        model = SYSTEMS[name].rebuild(settings, base, where)
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"], strict=False)
        averaged = read_ema(checkpoint) if ema else None
        if averaged is not None:
            model.network.load_state_dict({**model.network.state_dict(), **averaged})  # and buffers
    check_finite(model.network.state_dict().items(), where)
    return model.eval()


def load_predictor(
    folder: str, name: str = "UniGS", device: str = "cpu", sampling: Sampling | None = None
) -> Any:
    """The ``SystemPredictor`` of a folder that ``unigs export`` wrote.

    Args:
        folder: local, or a name of ``weights.SHIPPED``; every part is checked, and nothing is
            fetched.
        name: for tables.
        device: where it runs.
        sampling: what to do in another way than the model remembers.

    Raises:
        UnigsError: no such folder, or a damaged one.
    """
    folder = str(locate_shipped(folder))
    path = Path(folder) / INDEX
    with in_words("a pipeline folder", repr(folder)):
        kind = read_config(path).get("_class_name") if path.exists() else None
    load = FOLDERS.get(str(kind), load_joint)  # which says what it expected
    return load(folder, name, device, sampling)
