"""A pipeline folder's own record: its settings, and the digests of its parts.

In: a folder that ``save_pretrained`` wrote. Out: settings that are known and of the right type, and
bytes that are those that were written. A folder of before the digests still loads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unigs.codec import Palette
from unigs.records import UnigsError
from unigs.systems.sampling import ALL, read_remembered
from unigs.weights import INDEX, in_words, read_config

PARTS = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDPMScheduler"],
}
"""Every part is a stock class, and no other is ever imported for a folder."""

_LOADED = (".json", ".txt", ".safetensors")


def check_settings(settings: Mapping[str, Any], where: Path | str) -> None:
    """Refuse settings of a pipeline that are unknown or of a wrong type.

    Args:
        settings: ``palette`` and ``sampling``, as fields; some or all.
        where: for the message.

    Raises:
        UnigsError: names the setting.
    """
    for name, value in settings.items():
        if name not in ("palette", "sampling"):
            raise UnigsError(f"expected no setting of this name, got {name}={value!r}, at {where}")
        if name == "sampling":
            read_remembered(value, where)
        elif not isinstance(value, Mapping) or not value.keys() <= {"kind", "cells"}:
            raise UnigsError(f"expected kind and cells for palette, got {value!r}, at {where}")
        else:
            try:
                Palette(**value)
            except UnigsError as error:
                raise UnigsError(f"{error}, at {where}") from error


def upgrade_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a folder, also of one that was written before they were two records."""
    new = dict(settings)
    if isinstance(new.get("palette"), Mapping) or "sampling" in new:
        return new
    if isinstance(new.get("palette"), str) or "palette_cells" in new:
        old = {"kind": new.pop("palette", None), "cells": new.pop("palette_cells", None)}
        new["palette"] = {name: value for name, value in old.items() if value is not None}
    old = {"given_stream": new.pop("given_stream", None), "guided_filter": new.pop("sharpen", None)}
    if told := {name: value for name, value in old.items() if value is not None}:
        new.setdefault("sampling", {ALL: told})
    return new


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in a pipeline's index, which must name the stock parts.

    Raises:
        UnigsError: no pipeline of ours, another class in a part's place, or unknown settings.
    """
    path = folder / INDEX
    if not path.exists():
        raise UnigsError(
            f"expected a pipeline folder with {INDEX}, found none in {str(folder)!r}; "
            "write one with: unigs export"
        )
    index = read_config(path)
    kind = index.get("_class_name")
    if kind != "UniGSPipeline":
        raise UnigsError(
            f"expected a UniGSPipeline, got {kind}, at {path}; a model of Stable Diffusion is a "
            "base for training, not a pipeline"
        )
    for part, expected in PARTS.items():
        if index.get(part) != expected:
            raise UnigsError(
                f"expected {part} to be {expected}, got {index.get(part)!r}, at {path}"
            )
    settings = {k: v for k, v in index.items() if k not in PARTS and not k.startswith("_")}
    settings = upgrade_settings(settings)
    check_settings(settings, path)
    return settings


def list_files(folder: Path) -> list[str]:
    """Files that a loader reads, as paths below the folder with forward slashes."""
    inside = [path for part in PARTS for path in (folder / part).rglob("*") if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in inside if path.suffix in _LOADED]
    return [INDEX, *names]


def is_hub_id(source: str) -> bool:
    """Whether a hub may know it: ``name`` or ``owner/name``."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) is not None and source[0] not in ".~"


def fetch_pipeline(source: str, **hub: Any) -> Path:
    """The folder of a hub's pipeline, downloaded once; only files that a loader reads.

    Raises:
        UnigsError: neither a folder nor a pipeline of the hub.
    """
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.safetensors"]
    with in_words("a folder, a hub id of a pipeline, or tiny", repr(source)):
        return Path(snapshot_download(source, allow_patterns=patterns, **hub))
