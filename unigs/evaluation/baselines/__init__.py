"""Other people's models behind ``Predictor``, each by a local folder or an id of the hub.

They get the same pictures, masks and words as ours. The hub is asked only when that is allowed.

- ``diffusion``: Stable Diffusion inpainting; with a ControlNet or a T2I-Adapter.
- ``colours``: class maps as these two read them.
- ``segmenters``: Mask2Former, OneFormer, and any network that can judge.
- ``masks``: Segment Anything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unigs.evaluation.baselines.diffusion import load_adapter, load_controlnet, load_inpainting
from unigs.evaluation.baselines.masks import load_sam
from unigs.evaluation.baselines.segmenters import SegmenterBaseline
from unigs.evaluation.peers import split_sources
from unigs.metrics.segmenter import MASK2FORMER_CLASS, ONEFORMER_CLASS, load_segmenter
from unigs.systems.predictor import Predictor

__all__ = ["load_named", "load_peer"]

_ARCHITECTURES = {"mask2former": MASK2FORMER_CLASS, "oneformer": ONEFORMER_CLASS}


def load_named(
    name: str | Path,
    device: str | torch.device = "cpu",
    offline: bool = True,
    kind: str = "segmenter",
) -> SegmenterBaseline:
    """Load a network that finds and names segments.

    Args:
        name: a local folder, or an id of the hub.
        device: where it runs.
        offline: read the hub's local cache only; False allows the download.
        kind: its name in ``PEERS``, which is also that for tables.

    Raises:
        UnigsError: nothing there, or a network of another kind.
    """
    family, _, reading = kind.partition("-")
    segmenter = load_segmenter(
        name,
        device,
        offline,
        architecture=_ARCHITECTURES.get(family),
        semantic=reading == "semantic",
        asked=f"{kind}=",
    )
    return SegmenterBaseline(segmenter, kind)


def load_peer(
    kind: str, source: str, device: str | torch.device, offline: bool, **drawing: Any
) -> Predictor:
    """Load a peer by its name on the command line.

    Args:
        kind: one of ``PEERS``.
        source: what stands behind the equals sign.
        device: where it runs.
        offline: read the hub's local cache only; False allows the download.
        drawing: ``steps`` and ``seed`` of those that draw.

    Raises:
        UnigsError: nothing there, or a network of another kind.
    """
    drawers: dict[str, Callable[..., Predictor]] = {
        "sd-inpainting": load_inpainting,
        "controlnet": load_controlnet,
        "controlnet-coco": partial(load_controlnet, colours="coco", name="controlnet-coco"),
        "t2i-adapter": load_adapter,
    }
    sources = split_sources(kind, source)
    if kind in drawers:
        given = sources if len(sources) > 1 else sources[0]
        return drawers[kind](given, device, offline, **drawing)
    if kind == "sam":
        return load_sam(source, device, offline)
    return load_named(source, device, offline, kind)
