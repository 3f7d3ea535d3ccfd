"""A model's folder on disk: an index, weights in safetensors, and the digest of every part.

In: settings and weights of a trained system. Out: a folder that appears at once or not at all, and
whose bytes are those that were written, or an error that names the file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from unigs import __version__
from unigs.files import hash_file, new_folder, write_json
from unigs.records import UnigsError, UnigsWarning
from unigs.weights import (
    DIGESTS,
    INDEX,
    check_file,
    check_finite,
    check_target,
    in_words,
    read_config,
    read_tensors,
)

WEIGHTS = "model.safetensors"


def save_model(
    target: Path, kind: str, settings: Mapping[str, Any], weights: Mapping[str, Tensor], half: bool
) -> None:
    """Write a system's folder; an older one there is replaced at once or not at all.

    Args:
        target: the folder.
        kind: class of its predictor, by which ``load`` finds its loader.
        settings: plain values by which the network is built again.
        weights: its state.
        half: store them in half precision.

    Raises:
        UnigsError: other files lie there, or a weight is not finite, at half precision perhaps.
    """
    check_target(target)
    if half:
        weights = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    check_finite(weights.items(), kind)
    with new_folder(target) as new, in_words("room and rights to write", target):
        write_json(new / INDEX, {"_class_name": kind, "_unigs_version": __version__, **settings})
        save_file({k: v.contiguous().cpu() for k, v in weights.items()}, new / WEIGHTS)
        write_digests(new, [INDEX, WEIGHTS])


def load_model(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and weights of a folder that :func:`save_model` wrote; nothing is fetched.

    Raises:
        UnigsError: another folder, or a damaged one; names the file.
    """
    index = read_config(folder / INDEX)
    if index.get("_class_name") != kind:
        raise UnigsError(f"expected a {kind}, got {index.get('_class_name')}, at {folder / INDEX}")
    check_digests(folder, [INDEX, WEIGHTS])
    read_tensors(folder / WEIGHTS)
    with in_words("whole weights", folder / WEIGHTS):
        weights = load_file(folder / WEIGHTS)
    return {k: v for k, v in index.items() if not k.startswith("_")}, weights


def write_digests(folder: Path, files: Iterable[str]) -> None:
    """Record the sha256 of every file that a loader reads."""
    write_json(folder / DIGESTS, {name: hash_file(folder / name) for name in sorted(files)})


def check_digests(folder: Path, files: Iterable[str]) -> None:
    """Refuse a folder whose bytes are not those that were written.

    Args:
        folder: of a model.
        files: that a loader reads, as paths below it.

    Raises:
        UnigsError: names the file that was changed, is missing, or was added.
    """
    path, found = folder / DIGESTS, set(files)
    if not path.exists():
        warnings.warn(
            f"{folder} has no {DIGESTS}, so damage is not noticed; unigs export writes one",
            UnigsWarning,
            stacklevel=2,
        )
        return
    recorded = read_config(path)
    for name in sorted({*recorded, *found}):
        there = name in found and (folder / name).exists()
        with in_words("a readable file", folder / name):
            digest = hash_file(folder / name) if there else ""
        if digest != recorded.get(name):
            if digest:
                check_file(folder / name)  # an empty file or a pointer says more than its digest
            what = "changed" if digest and name in recorded else "added" if digest else "missing"
            raise UnigsError(
                f"expected the files that {DIGESTS} records, got {name} {what}, at {folder}; fetch "
                f"the folder again, or delete {DIGESTS} if the change is yours"
            )
