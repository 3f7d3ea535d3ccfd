"""Weights and configs on disk, checked before and after another library's loader sees them.

In: files that people bring: missing, cut, empty, pointers, damaged, or of another network. Out:
stock modules, whole and finite, or words that name the file. Nothing here reaches the network,
and torch is imported only to read tensors.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from unigs.files import is_pointer
from unigs.records import UnigsError

if TYPE_CHECKING:
    import torch

INDEX, DIGESTS = "model_index.json", "digests.json"
"""Of a model's folder: what it is, and the sha256 of every part."""

SHIPPED = {
    "tiny": "pipeline",
    "pix2seq-d": "pix2seq-d",
    "pix2seq-d-video": "pix2seq-d-video",
    "gss": "gss",
    "vq": "vq",
}
"""Weights that come with the package, made for 64 px synthetic scenes -> folder in ``assets``:
models, and the posterior of GSS.
"""

MAX_CONFIG_BYTES = 64 << 20
"""A vocabulary takes a few megabytes, a config some kilobytes."""

MAX_NUMBER = 10_000_000
MAX_LAYERS = 1000
"""Larger numbers in a config are damage, and would take the machine's memory or an hour."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
"""``org/name``."""

_OWN_FOLDERS = ("configs", "data", "runs")
"""First folders that our own commands and pages use; on the hub they must be asked for."""

_UNPICKLED = (".bin", ".ckpt", ".pt", ".pth")


_checked: set[tuple[str, int, int]] = set()  # files this process has checked: path, size, time


class BadCheckpoint(UnigsError):
    """A file that is no whole checkpoint of ours."""


@contextmanager
def in_words(expected: str, where: Path | str) -> Iterator[None]:
    """Turn whatever another library raises on a damaged file into words.

    Args:
        expected: what should have been there.
        where: the file or folder, for the message.

    Raises:
        UnigsError: in place of any other exception.
    """
    try:
        yield
    except UnigsError:
        raise
    except Exception as error:  # loaders of foreign bytes raise nearly anything
        said = (str(error).strip() or "no reason").splitlines()[0][:300]
        raise UnigsError(
            f"expected {expected}, got {type(error).__name__}: {said}, at {where}"
        ) from error


def locate_shipped(name: str | Path) -> Path:
    """The folder of a model that ships, by its name; every other name, and a folder of that name
    where one works, is itself.
    """
    folder = Path(name)
    if str(name) not in SHIPPED or folder.exists():
        return folder
    return Path(__file__).parent / "assets" / SHIPPED[str(name)]


def read_hub_id(name: str) -> str | None:
    """The hub id that a name stands for, or None if it is a path.

    ``hub:org/name`` always is one. A bare ``org/name`` is one unless a folder ``org`` lies here or
    is one that our commands write (``runs/typo``); with no slash, or more, it is a path.
    """
    if name.startswith("hub:"):
        return name.removeprefix("hub:")
    first = name.partition("/")[0]
    if not HUB_ID.fullmatch(name) or first in _OWN_FOLDERS or Path(first).exists():
        return None
    return name


def resolve_source(name: str | Path, offline: bool) -> tuple[str, bool]:
    """What a stock loader takes for a folder or a hub id, and whether it must stay offline.

    A path that is not there is nothing to ask the hub for.

    Args:
        name: a local folder, or an id of the hub.
        offline: whether the hub's local cache alone may be read.
    """
    where = str(name)
    asks = not Path(where).exists() and read_hub_id(where) is not None
    return where.removeprefix("hub:"), offline or not asks


def check_target(target: Path) -> None:
    """Refuse to replace anything but a model's folder.

    Raises:
        UnigsError: something else lies there.
    """
    if target.exists() and not (target / INDEX).exists():
        raise UnigsError(f"expected a pipeline or nothing at {target}, found other files")


def check_file(path: Path) -> None:
    """Look at a file's first bytes.

    Raises:
        UnigsError: missing, no plain file, empty, or a Git LFS pointer.
    """
    with in_words("a readable file", path):
        if not path.is_file():
            kind = "another kind of file" if path.exists() else "none"
            raise UnigsError(f"expected a file {path.name}, got {kind}, at {path}")
        empty, pointer = not path.stat().st_size, is_pointer(path)
    if empty:
        raise UnigsError(f"expected a file with content, got 0 bytes, at {path}")
    if pointer:
        raise UnigsError(
            f"expected the file itself, got its Git LFS pointer (run git lfs pull), at {path}"
        )


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size.

    Raises:
        UnigsError: anything else.
    """
    check_file(path)
    with in_words("a JSON object", path):
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UnigsError(f"expected at most {MAX_CONFIG_BYTES} bytes of JSON, at {path}")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise UnigsError(f"expected a JSON object, got {type(config).__name__}, at {path}")
    return config


def check_numbers(config: dict[str, Any], path: Path) -> None:
    """Refuse numbers of a config that are not finite or would take all memory.

    Raises:
        UnigsError: names the key.
    """
    for key, value in config.items():
        limit = MAX_LAYERS if "layers" in key else MAX_NUMBER
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not abs(number) <= limit:  # NaN too
                raise UnigsError(f"expected {key} of at most {limit}, got {number}, at {path}")


def read_tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, by its header alone.

    Raises:
        UnigsError: no whole file of that kind.
    """
    check_file(path)
    with (
        in_words("whole safetensors weights (cut, damaged, or another format?)", path),
        safe_open(path, "pt") as file,
    ):
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def find_weights(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of one part: one, or those that an index lists.

    Raises:
        UnigsError: none, or an index that names files elsewhere.
    """
    whole, index = (folder / f"{stem}.safetensors{end}" for end in ("", ".index.json"))
    if index.exists():
        listed = read_config(index).get("weight_map")
        names = list(listed.values()) if isinstance(listed, dict) else []
        plain = [name for name in names if isinstance(name, str) and Path(name).name == name]
        if not names or len(plain) != len(names):
            raise UnigsError(f"expected a weight_map to files beside it, got others, at {index}")
        return [folder / name for name in sorted(set(plain))]
    if not whole.exists():
        there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        pickled = any(name.endswith(_UNPICKLED) for name in there)
        hint = "; a pickle can run code: convert it to safetensors" if pickled else ""
        raise UnigsError(
            f"expected {whole.name}, got {', '.join(there) or 'none'}{hint}, at {whole}"
        )
    return [whole]


def load_module(kind: Any, folder: Path, stem: str, may_leave: bool = False) -> Any:
    """A stock network from its own folder, by its own loader.

    Args:
        kind: class with ``from_pretrained``.
        folder: holds ``config.json`` and the weights.
        stem: of the weights' file name.
        may_leave: whether the file may hold tensors that the network has not.

    Raises:
        UnigsError: a config or weights that are missing, damaged, of another network, or not
            finite; names the file, and the tensor where it is one.
    """
    where = folder / "config.json"
    config = read_config(where)
    check_numbers(config, where)
    named = config.get("_class_name", kind.__name__)
    if named != kind.__name__:
        raise UnigsError(f"expected the config of a {kind.__name__}, got {named}, at {where}")
    files = find_weights(folder, stem)
    for file in files:
        read_tensors(file)
    with in_words(f"a {kind.__name__} and its weights", files[0]):
        module, info = kind.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    check_names(info["missing_keys"], () if may_leave else info["unexpected_keys"], files[0])
    check_finite(module.state_dict().items(), files[0])
    return module


def check_names(missing: Iterable[str], unexpected: Iterable[str], where: Path) -> None:
    """Refuse weights that leave a part of the network random, or are of a larger one.

    Raises:
        UnigsError: names some of the tensors.
    """
    for names, words in ((missing, "got none of"), (unexpected, "got beside it")):
        names = sorted(names)
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UnigsError(
                f"expected every weight of its config and no other, {words} "
                f"{', '.join(names[:3])}{more}, at {where}"
            )


def find_not_finite(tensors: Iterable[tuple[str, Any]]) -> str:
    """Name of the first tensor that holds NaN or infinity; empty if none does.

    One reduction over all, because most often there is none; only then the one is looked for.
    """
    import torch  # late: configs are read without it

    floats = {
        name: tensor.detach()
        for name, tensor in tensors
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.numel()
    }
    sums = [tensor.sum(dtype=torch.float32) for tensor in floats.values()]
    if not sums or bool(torch.isfinite(torch.stack([one.cpu() for one in sums])).all()):
        return ""
    return next((name for name, tensor in floats.items() if not tensor.isfinite().all()), "")


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], where: Path | str) -> None:
    """Refuse weights that a diverged run or an overflow left.

    Raises:
        UnigsError: names the tensor.
    """
    if name := find_not_finite(tensors):
        raise UnigsError(f"expected finite weights, got NaN or infinity in {name}, at {where}")


def is_url(path: str | Path) -> bool:
    """Whether a checkpoint lies behind a URL."""
    return "://" in str(path)


def check_checkpoint(path: str | Path) -> Path:
    """A checkpoint's file, every byte of it checked; no tensor is read.

    Raises:
        BadCheckpoint: none there; a URL; cut, damaged, empty or a Git LFS pointer.
    """
    if is_url(path):
        raise BadCheckpoint(
            f"expected a checkpoint file, got a URL, {path}: nothing is fetched and loaded in one "
            "go; download it and pass the file"
        )
    file = Path(path)
    if trouble := find_trouble(file):
        others = [p.name for p in sorted(file.parent.glob("*.ckpt")) if p != file and p.is_file()]
        beside = [name for name in others if not find_trouble(file.parent / name)]
        hint = f"; whole ones beside it: {', '.join(beside)}" if beside else ""
        raise BadCheckpoint(f"expected a whole checkpoint, got {trouble}, at {file}{hint}")
    return file


def find_trouble(file: Path) -> str:
    """What is wrong with a file that should be a checkpoint, in words; empty if it is whole."""
    try:
        if file.is_dir():
            return "a folder"
        stat = file.stat()
        if not stat.st_size:
            return "an empty file"
        key = str(file.resolve()), stat.st_size, stat.st_mtime_ns
        if key in _checked:
            return ""
        if is_pointer(file):
            return "a Git LFS pointer instead of the file (git lfs pull)"
        if not zipfile.is_zipfile(file):
            return "a file that is cut, or no checkpoint"
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except FileNotFoundError:
        return "nothing"
    except (OSError, zipfile.BadZipFile, ValueError, EOFError) as error:
        return f"a damaged file ({error})"
    if damaged:
        return f"a damaged file (checksum of {damaged})"
    _checked.add(key)
    return ""
