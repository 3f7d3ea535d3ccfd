"""Other people's models by their name on the command line: what each can do, how it is given.

No torch: what is mistyped, missing or asked to do what it cannot is refused before anything loads.
``baselines`` loads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unigs.records import UnigsError
from unigs.weights import read_hub_id


@dataclass(frozen=True, slots=True)
class Peer:
    """A kind of model that others made.

    Attributes:
        tasks: those that it can do.
        parts: what is given for it, joined by ``+``: local folders, or ids of the hub.
    """

    tasks: tuple[str, ...]
    parts: tuple[str, ...] = ("FOLDER",)


_SEES = ("referring", "entity")

PEERS = {
    "sd-inpainting": Peer(("inpainting",)),
    "controlnet": Peer(("synthesis",), ("BASE", "CONTROLNET")),
    "controlnet-coco": Peer(("synthesis",), ("BASE", "CONTROLNET")),
    "t2i-adapter": Peer(("synthesis",), ("BASE", "ADAPTER")),
    "mask2former": Peer(_SEES),
    "mask2former-semantic": Peer(_SEES),
    "oneformer": Peer(_SEES),
    "oneformer-semantic": Peer(_SEES),
    "segmenter": Peer(_SEES),
    "sam": Peer(("entity",)),
}
"""By what stands before the equals sign of ``--models``."""


def split_sources(kind: str, source: str) -> list[str]:
    """The folders or ids of a peer's parts.

    Args:
        kind: one of ``PEERS``.
        source: what stands behind the equals sign.

    Raises:
        UnigsError: fewer or more than it has parts.
    """
    parts = PEERS[kind].parts
    sources = source.split("+") if len(parts) > 1 else [source]
    if len(sources) != len(parts) or not all(sources):
        raise UnigsError(
            f"expected {kind}={'+'.join(parts)}, folders or ids of the hub, got {kind}={source}, "
            "in --models"
        )
    return sources


def check_peer(kind: str, source: str, tasks: Sequence[str]) -> None:
    """Refuse a peer that is not there, or that can do none of the tasks.

    Args:
        kind: one of ``PEERS``.
        source: what stands behind the equals sign; the hub is not asked.
        tasks: that are evaluated.

    Raises:
        UnigsError: names what is wrong.
    """
    peer = PEERS[kind]
    for part, name in zip(peer.parts, split_sources(kind, source), strict=True):
        folder = Path(name)
        if folder.is_dir() or (not folder.exists() and read_hub_id(name)):
            continue
        came = "a file" if folder.exists() else "nothing there"
        raise UnigsError(
            f"expected a folder or an id of the hub as {part} of {kind}={'+'.join(peer.parts)}, "
            f"got {came}, at {name}"
        )
    if not set(peer.tasks) & set(tasks):
        raise UnigsError(
            f"expected models for {', '.join(tasks)}, got {kind}, which can do "
            f"{' and '.join(peer.tasks)} alone, in --models; choose it in --scenes.tasks"
        )
