"""What a prediction depends on, as short digests by part: weights, configs, vocabulary, options.

A row of results belongs to one such description. It is made by walking through the predictor, so a
new kind of predictor, or a new part of an old one, cannot be forgotten.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

_PLAIN = (type(None), bool, int, float, str)
_PASSING = ("_name_or_path", "_diffusers_version", "transformers_version", "_use_default_values")
"""Entries of a config that say where and by whom it was written."""


def describe_predictor(predictor: Any) -> dict[str, Any]:
    """Every part of a predictor: dotted name -> digest, or the value itself where that is short.

    Its own plain attributes are left out, as they may count: what decides stands in ``options``.
    """
    parts = _list_public(predictor)
    return _join({k: v for k, v in parts.items() if not isinstance(v, _PLAIN)}, "")


def describe_parts(value: Any, name: str) -> dict[str, Any]:
    """The same for anything a predictor holds.

    Args:
        value: a module, pipeline, tokenizer, scheduler, processor, container or plain value.
        name: of the part.
    """
    if isinstance(value, _PLAIN):
        return {name: value}
    if isinstance(value, nn.Module):
        if any(hasattr(child, "config") for child in value.children()):  # models side by side
            return _join({**dict(value.named_children()), **_list_public(value)}, name)
        config = getattr(value, "config", None)
        return {name: fingerprint(value), **_describe_config(config, f"{name}.config")}
    if hasattr(value, "get_vocab"):  # a tokenizer
        facts = [value.get_vocab(), value.model_max_length, value.special_tokens_map]
        return {name: _digest(facts)}
    if hasattr(value, "components"):  # a pipeline
        parts = _join(value.components, name)
        return parts | _describe_config(getattr(value, "config", None), f"{name}.config")
    if hasattr(value, "config") or hasattr(value, "to_dict"):  # a scheduler, an image processor
        return _describe_config(getattr(value, "config", value), name)
    if isinstance(value, Mapping):
        return _join(value, name)
    if isinstance(value, (list, tuple)):
        return {name: str(list(value))}
    if isinstance(value, (set, frozenset)):
        return {name: str(sorted(value, key=str))}
    return _join(_list_public(value), name) or {name: str(value)}


def _list_public(value: Any) -> dict[str, Any]:
    """An object's attributes; those with an underscore are its state and decide nothing."""
    fields = [*getattr(value, "__slots__", ()), *getattr(value, "__dict__", ())]
    return {field: getattr(value, field) for field in fields if not field.startswith("_")}


def _join(parts: Mapping[Any, Any], name: str) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for key, part in sorted(parts.items(), key=lambda item: str(item[0])):
        joined |= describe_parts(part, f"{name}.{key}" if name else str(key))
    return joined


def _describe_config(config: Any, name: str) -> dict[str, Any]:
    if config is None:
        return {}
    content = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {name: _digest({k: v for k, v in content.items() if k not in _PASSING})}


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@torch.no_grad()
def fingerprint(module: nn.Module) -> str:
    """A short digest that changes with the weights; sums only, so cheap on any device."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        flat = value.double().flatten()
        ramp = torch.arange(1, len(flat) + 1, device=flat.device, dtype=torch.float64)
        digest.update(f"{name} {float((flat * ramp).sum()):.9e}".encode())
    return digest.hexdigest()[:16]


def list_differences(saved: Any, now: Any, name: str = "") -> list[str]:
    """Where two descriptions differ, in words: ``parts.vae: 12ab (saved 34cd)``."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        keys = sorted(saved.keys() | now.keys())
        return [
            words
            for key in keys
            for words in list_differences(saved.get(key), now.get(key), f"{name}.{key}".strip("."))
        ]
    return [] if saved == now else [f"{name}: {now!r} (saved {saved!r})"]
