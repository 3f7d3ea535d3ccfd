"""``Predictor``: a ``Batch`` of one task -> a ``Prediction``; what is evaluated and shown.

Every system makes one of its own kind; ceilings, floors and other people's models stand behind the
same interface in ``evaluation``.
"""

from __future__ import annotations

from typing import Any, Protocol

from unigs.records import TASKS, Batch, Prediction


class Predictor(Protocol):
    """What is evaluated.

    Attributes:
        name: for tables and folders.
        tasks: those it can do.
        options: settings that its predictions depend on, if it has any; see ``fingerprint``.
    """

    @property
    def name(self) -> str: ...

    @property
    def tasks(self) -> tuple[str, ...]: ...

    def __call__(self, batch: Batch) -> Prediction:
        """Predict a batch of one of its tasks, at the batch's size."""
        ...


class SystemPredictor(Predictor, Protocol):
    """What a system of the house makes of its trained network.

    Attributes:
        decoders: by which its codes become masks, its own first.
        side_px: side of the pictures it was trained on.
        multiple_px: of it are the sides of the pictures that it takes.
    """

    @property
    def options(self) -> dict[str, Any]: ...

    @property
    def decoders(self) -> tuple[str, ...]: ...

    @property
    def side_px(self) -> int: ...

    @property
    def multiple_px(self) -> int: ...

    def decode_again(self, batch: Batch, prediction: Prediction, decoder: str) -> Prediction:
        """The same prediction with the masks that another of its decoders finds."""
        ...

    def save(self, folder: str, half: bool = False) -> None:
        """Write it as a folder of stock components that ``load_predictor`` reads."""
        ...


def name_task(batch: Batch) -> str:
    """The one task of a batch."""
    return TASKS[int(batch.task[0])]
