"""The records that travel between modules, the task names, and the legend of shapes.

Data moves left to right through these records and through nothing else (README, "The house")::

    annotations -> Annotated -> shards -> streams -> tasks -> TaskSample -> data -> Batch
    -> systems -> Prediction -> metrics -> evaluation

``Latents`` stand in for a ``Batch`` where the frozen half of a step was done before (``latents``).

Legend, used by every docstring: B batch, N entities, C channels, H W pixels, h w latent cells,
T diffusion steps, L tokens. Images are uint8 0..255 outside of ``systems``, float -1..1 inside.

Nothing here imports torch: a reader of annotations starts at once.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

if TYPE_CHECKING:
    import torch

TASKS = ("inpainting", "synthesis", "referring", "entity")
"""The four tasks of Table 2. A task's place here is its row in the task embedding."""

Unlabelled = Literal["void", "unannotated", "background"]
"""What label 0 means in one picture.

``void``: annotators looked and gave no label (COCO panoptic 0). ``unannotated``: nobody looked
(Open Images, COCO instances, holes of EntitySeg). ``background``: known to hold no entity.
Entity segmentation learns only the last as truth.
"""

Decoder = Literal["refined", "dichotomy"]
"""How a colormap becomes masks: ``refined`` knows the palette; ``dichotomy`` is the paper's."""

SHOWN_LETTERS = 500
"""Of an example that a count keeps."""


def show(text: object, limit: int | None = None) -> str:
    r"""Text from data for people: one line, and no letter of it moves the cursor or hides others.

    Args:
        text: names, words or a whole message.
        limit: letters after which it is cut.

    Example:
        >>> show("a\x1b[2J")
        'a\\x1b[2J'
    """
    line = str(text)
    if limit is not None and len(line) > limit:
        line = f"{line[:limit]}..."
    if line.isprintable():
        return line
    return "".join(
        letter if letter.isprintable() or unicodedata.category(letter) == "Zs" else _escape(letter)
        for letter in line
    )


def suggest(word: str, known: Iterable[str]) -> str:
    """The nearest known word, for the end of a message; empty where none is near."""
    near = get_close_matches(word, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


class UnigsError(Exception):
    """Bad input, told in three parts: what was expected, what came, where."""


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, or torch's of any device.

    For a CPU torch raises a plain ``RuntimeError``. It is known by its words, without torch.
    """
    if isinstance(error, MemoryError):
        return True
    words = ("DefaultCPUAllocator", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


class UnigsWarning(UserWarning):
    """What a user should know and may have meant; the command line prints it as one line."""


def check_bounds(record: Any, where: str, **bounds: tuple[float, float]) -> None:
    """Refuse numbers of a record of options that nothing can be made with; None is no number.

    Args:
        record: whose fields they are.
        where: the name of the record on the command line.
        bounds: field -> least and most.

    Raises:
        UnigsError: names the option.
    """
    for name, (least, most) in bounds.items():
        value = getattr(record, name)
        if value is not None and not least <= value <= most:
            told = f"at least {least}" if most == inf else f"{least} to {most}"
            raise UnigsError(f"expected {told}, got {value!r}, at {where}.{name}")


class TooManySkips(UnigsError):
    """More samples were unusable than the run allows."""


@dataclass(frozen=True, slots=True)
class Entity:
    """One annotated thing or stuff region of a picture.

    Attributes:
        label: its value in ``Annotated.labels``, 1..N without gaps.
        category: English name, stripped of blanks. Names repeat between categories; never a key.
        category_id: the source's own id, as text (``"18"``, ``"/m/0bt9lr"``).
        annotation_id: the source's own id of this annotation, as text, unique within the picture.
        is_thing: countable (True), stuff (False), or not said by the source (None).
        is_crowd: a group annotated as one; never drawn as a single entity.
    """

    label: int
    category: str
    category_id: str
    annotation_id: str
    is_thing: bool | None = None
    is_crowd: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """What a frame of a clip knows of the frames before it: their labels, and not their pictures.

    Attributes:
        labels: uint16 [P, H, W], the nearest frame first, numbered as the frame's own labels are; 0
            where no entity is known, everywhere where there is no such frame.
        gone: entities of those frames that the frame itself does not show, numbered on from its.
    """

    labels: np.ndarray
    gone: tuple[Entity, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Annotated:
    """A picture and its entities, as any data set gives them and as a shard stores them.

    Attributes:
        key: unique in a data set, without dots and slashes (a WebDataset key).
        image: the encoded file, whose stored pixels (EXIF ignored) are the ones annotated.
        labels: uint16 [H, W]; 0 is unlabelled, k is the entity with ``label == k``. Overlaps are
            resolved already, smaller on top; every entity owns at least one pixel.
        entities: sorted by label.
        unlabelled: what label 0 means here.
        source: the data set, e.g. ``"coco-panoptic"``.
        past: of a frame of a clip; None of a picture.
    """

    key: str
    image: bytes
    labels: np.ndarray
    entities: tuple[Entity, ...]
    unlabelled: Unlabelled
    source: str
    past: Past | None = None

    @property
    def height(self) -> int:
        return int(self.labels.shape[0])

    @property
    def width(self) -> int:
        return int(self.labels.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class TaskSample:
    """One training or evaluation sample after geometry: a pure function of (manifest, seed, index).

    Attributes:
        key: the picture it came from.
        index, seed: its place in the stream and the stream's seed; they key noise and timestep too.
        task: one of ``TASKS``.
        image: uint8 [3, H, W].
        labels: int32 [H, W], the entities of the target colormap, 1..N; 0 is painted black.
        ignored: bool [H, W]; True where the colormap's truth is unknown (no loss, no score).
        coarse_mask: bool [H, W]; True is to be filled (Omega, Eq. 9).
        prompt: the words of Table 2.
        asked: the names in the prompt, negatives included; also where the prompt was dropped.
        names: spoken category of label k at ``names[k - 1]``.
        past: int32 [P, H, W], labels of the frames before, the nearest first; None of a picture.
        gone: spoken categories of the labels that follow on ``names`` and occur in ``past`` alone.
        window: which of its picture's windows this is; None: one of its own.
        image_latents: float32 [4, h, w] of the image, if they are cached.
    """

    key: str
    index: int
    seed: int
    task: str
    image: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    coarse_mask: np.ndarray
    prompt: str
    asked: tuple[str, ...]
    names: tuple[str, ...]
    past: np.ndarray | None = None
    gone: tuple[str, ...] = ()
    window: int | None = None
    image_latents: np.ndarray | None = None


class Movable:
    """A record whose tensors go to a device together; what the host asks for stays there."""

    __slots__ = ()
    MOVED: ClassVar[tuple[str, ...]]

    def to(self, device: torch.device | str) -> Self:
        """The record with its tensors on another device. Lightning calls this.

        A copy to a GPU is not waited for; a copy from one is.
        """
        ahead = str(device).startswith("cuda")
        return self._map(lambda tensor: tensor.to(device, non_blocking=ahead and tensor.is_cpu))

    def pin_memory(self) -> Self:
        """The record in page-locked memory. A ``DataLoader`` with ``pin_memory`` calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        parts = {name: getattr(self, name) for name in self.MOVED}
        changed: dict[str, Any] = {k: change(part) for k, part in parts.items() if part is not None}
        return replace(self, **changed)  # type: ignore[type-var]


@dataclass(slots=True, eq=False)
class Batch(Movable):
    """``TaskSample`` s stacked, B at a time. Colormaps are painted from ``labels`` on the device.

    Attributes:
        keys, prompts, asked, names: lists of length B.
        seed: of the stream.
        index: int64 [B]. task: int64 [B], place in ``TASKS``. Both stay on the host.
        image: uint8 [B, 3, H, W]. labels: int32 [B, H, W].
        ignored: bool [B, H, W]. coarse_mask: bool [B, 1, H, W].
        largest: the largest label, so that no device is asked for it; None: not known.
        past: int32 [B, P, H, W], zeros of a picture among frames; None if no sample is a frame.
        gone: of each sample; empty if no sample is a frame.
        image_latents: float32 [B, 4, h, w], those of ``image``, if they are cached.
        noise: float32 [B, ...], of the training step, if the loader drew it; see ``noise``.
    """

    MOVED: ClassVar[tuple[str, ...]] = (
        "image", "labels", "ignored", "coarse_mask", "past", "image_latents", "noise",
    )  # fmt: skip

    keys: list[str]
    prompts: list[str]
    asked: list[tuple[str, ...]]
    names: list[tuple[str, ...]]
    seed: int
    index: torch.Tensor
    task: torch.Tensor
    image: torch.Tensor
    labels: torch.Tensor
    ignored: torch.Tensor
    coarse_mask: torch.Tensor
    largest: int | None = None
    past: torch.Tensor | None = None
    gone: list[tuple[str, ...]] = field(default_factory=list)
    image_latents: torch.Tensor | None = None
    noise: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(slots=True, eq=False)
class Latents(Movable):
    """What the frozen half of a step makes of a ``Batch``, B samples.

    Attributes:
        keys, prompts: lists of length B.
        seed: of the stream.
        index: int64 [B], which keys noise and timestep. task: int64 [B], place in ``TASKS``. Both
            stay on the host.
        clean: float32 [B, 8, h, w], the latents of image and colormap.
        context: float32 [B, 4, h, w], z_c.
        mask: float32 [B, 1, h, w], the coarse mask; 1 is to be filled.
        known: float32 [B, 1, h, w] in 0..1, the part of each cell whose colormap is known.
        weight: float32 [B, 1, h, w], of the cells in the loss, of mean 1.
        noise: float32 [B, 8, h, w], of the training step, if the loader drew it.
    """

    MOVED: ClassVar[tuple[str, ...]] = ("clean", "context", "mask", "known", "weight", "noise")

    keys: list[str]
    prompts: list[str]
    seed: int
    index: torch.Tensor
    task: torch.Tensor
    clean: torch.Tensor
    context: torch.Tensor
    mask: torch.Tensor
    known: torch.Tensor
    weight: torch.Tensor
    noise: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a predictor gives for a batch, at its size.

    Attributes:
        image: uint8 [B, 3, H, W]. colormap: uint8 [B, 3, H, W], as generated.
        labels: int32 [B, H, W], the decoded masks; 0 is background.
        scores: per image one float in 0..1 per label 1..N.
        names: per image the spoken category of each label 1..N, ``""`` for one that is not named;
            None of a model that names nothing.
        has_masks: False of a model that draws and finds no masks; it has no figures of masks.
    """

    image: torch.Tensor
    colormap: torch.Tensor
    labels: torch.Tensor
    scores: list[list[float]]
    names: list[list[str]] | None = None
    has_masks: bool = True

    def cpu(self) -> Prediction:
        """The same on the CPU."""
        image, colormap, labels = self.image.cpu(), self.colormap.cpu(), self.labels.cpu()
        return replace(self, image=image, colormap=colormap, labels=labels)


@dataclass
class Skips:
    """Counts what was left out, by reason, with one example of each; never a silent loss."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str, count: int = 1) -> None:
        """Count a skip; ``where`` names the file, row or id of the first of its kind."""
        self.counts[reason] += count
        if reason not in self.examples:
            self.examples[reason] = show(where, SHOWN_LETTERS)

    def update(self, other: Skips) -> None:
        """Add another tally to this one."""
        self.counts.update(other.counts)
        for reason, where in other.examples.items():
            self.examples.setdefault(reason, where)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        rows = [f"{n} x {why} (e.g. {self.examples[why]})" for why, n in self.counts.most_common()]
        return "; ".join(rows) or "nothing skipped"
