"""Clips, frame by frame: what a predictor carries from one frame to the next, and its file.

In: frames in their order. Out: entities whose numbers stay theirs over the frames. What is carried
are the label maps of the last few frames on the model's own grid, so memory does not grow with the
length of a clip, and a stream that was cut goes on bit for bit from its file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from unigs.files import new_file
from unigs.records import Prediction, UnigsError
from unigs.systems.predictor import SystemPredictor
from unigs.weights import check_file, in_words

FRAME, MAPS = "frame", "maps"


@dataclass(frozen=True, slots=True, eq=False)
class ClipState:
    """Where a stream stands.

    Attributes:
        frame: number of the next frame, from 0; with the seed it decides the noise.
        maps: of the frames before, the nearest first: classes (shifted by one, 0 is void) and ids,
            int64 [K, 2, h, w] on the CPU; None before there are any.
    """

    frame: int = 0
    maps: torch.Tensor | None = None


class Tracked(NamedTuple):
    """A frame's answer, whose labels are ids that stay over the frames, and what to go on with."""

    prediction: Prediction
    state: ClipState


class ClipPredictor(SystemPredictor, Protocol):
    """A predictor that can follow entities through a clip.

    Attributes:
        past_frames: at which it looks back; 0 of a model of pictures.
    """

    @property
    def past_frames(self) -> int: ...

    def follow(self, image: torch.Tensor, state: ClipState) -> Tracked:
        """Find the entities of the next frame.

        Args:
            image: uint8 [1, 3, H, W]; all frames of a clip are of one size.
            state: what :meth:`follow` gave for the frame before; ``ClipState()`` of the first.

        Raises:
            UnigsError: a frame of another size than those before.
        """
        ...

    def recall(
        self, frame: int, labels: Sequence[torch.Tensor], names: Sequence[str], size: Sequence[int]
    ) -> ClipState:
        """The state before a frame, of maps that are known.

        Args:
            frame: its number.
            labels: of the frames before, the nearest first, int [H, W] of any size; 0 is void.
            names: spoken, of label k at ``names[k - 1]``.
            size: H, W of the frames that :meth:`follow` is shown.
        """
        ...


def save_state(state: ClipState, path: Path) -> None:
    """Write a state, at once or not at all."""
    assert state.maps is not None
    with new_file(path) as temp:
        save_file({MAPS: state.maps.contiguous()}, temp, {FRAME: str(state.frame)})


def read_state(path: Path) -> ClipState:
    """What :func:`save_state` wrote.

    Raises:
        UnigsError: none there, or damaged.
    """
    check_file(path)
    with in_words("the state of a stream", path), safe_open(path, "pt") as file:
        frame, maps = int((file.metadata() or {})[FRAME]), file.get_tensor(MAPS)
        if maps.dtype != torch.int64 or maps.dim() != 4 or maps.shape[1] != 2 or frame < 1:
            raise UnigsError(
                f"expected maps int64 [K, 2, h, w] before a frame from 1, got {maps.dtype} "
                f"{list(maps.shape)} before frame {frame}, at {path}"
            )
    return ClipState(frame, maps)
