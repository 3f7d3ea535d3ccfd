"""Requests of a page -> answers: each is an order of a task verb in a folder of its own.

In: an upload, words, a mask. Out: what the screen shows, and an archive of the verb's files. One
model serves everybody, one request after the other; the page sees to that. The folder of a request
goes with it, so that nobody finds another's files.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from unigs.demo.serve import SERVED
from unigs.demo.uploads import show_picture
from unigs.outputs.encode import encode_mask
from unigs.records import UnigsError, show
from unigs.systems.load import load_predictor
from unigs.systems.predictor import SystemPredictor
from unigs.systems.sampling import Sampling
from unigs.verbs.answer import Order, PicturesFailed, answer
from unigs.verbs.device import choose_device
from unigs.verbs.model import DEFAULT, locate_model, name_system

TASKS = {
    "segment": "entity",
    "find": "referring",
    "inpaint": "inpainting",
    "paint": "synthesis",
}
"""The task of each verb that has a tab."""

FOLDERS = {"segment": "segmented", "find": "found", "inpaint": "filled", "paint": "painted"}
"""What an archive is called, and the folder in it."""


class Stopped(Exception):
    """The user did not wait for the answer."""


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """What a user hands in.

    Attributes:
        name: of the picture's or label map's file; it names the files of the answer.
        data: its bytes, as they came.
        words: names of things.
        mask: bool [H, W] of the picture's size, where to fill; None where nothing is filled.
    """

    name: str
    data: bytes
    words: Sequence[str] = ()
    mask: np.ndarray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a request came to.

    Attributes:
        picture: RGB at the size of the screen, the one given or the one drawn.
        labels: int [h, w], the masks on it.
        segments: of all masks at full size, as the verb's record has them.
        size: width and height of the full size, pixels.
        archive: zip of the verb's output folder.
    """

    picture: Image.Image
    labels: np.ndarray
    segments: Sequence[Mapping[str, Any]]
    size: tuple[int, int]
    archive: Path


class Desk:
    """One loaded model and the room where its requests are answered.

    Args:
        model: folder that ``unigs export`` wrote, or a name of ``weights.SHIPPED``; None for the
            small one that ships.
        device: ``auto``, ``cpu``, ``cuda``, ...
        folder: for the files of this run: ``requests``, where each has a folder of its own while
            it is answered, and ``SERVED``, for archives.

    Raises:
        UnigsError: no such model, a damaged one, or no such device.
    """

    def __init__(self, model: Path | None, device: str, folder: Path) -> None:
        self.model = locate_model(model)
        self.name = DEFAULT if model is None else str(model)
        self.device = choose_device(device)
        self.room, self.served = folder / "requests", folder / SERVED
        for made in (self.room, self.served):
            made.mkdir(parents=True, exist_ok=True)
        self.predictor: SystemPredictor = load_predictor(str(self.model), device=self.device)

    @property
    def verbs(self) -> list[str]:
        """Those whose task the model can do, in the order of the tabs."""
        return [verb for verb, task in TASKS.items() if task in self.predictor.tasks]

    def answer(
        self,
        verb: str,
        ask: Ask,
        stop: threading.Event | None = None,
    ) -> Answer:
        """Answer one request by the function of its verb.

        Args:
            verb: of ``verbs``.
            ask: what of.
            stop: once it is set, the next layer of the model raises ``Stopped``.

        Raises:
            UnigsError: what was asked cannot be answered; in words for the page.
            Stopped: see above.
        """
        with tempfile.TemporaryDirectory(dir=self.room) as temp:
            room = Path(temp)
            given, hole = room / "given", None
            given.mkdir()
            picture = given / ask.name
            picture.write_bytes(ask.data)
            if ask.mask is not None:
                hole = room / "mask.png"
                hole.write_bytes(encode_mask(ask.mask))
            order = Order(
                verb, TASKS[verb], [str(picture)], room / FOLDERS[verb],
                self.model, self.device, "auto", 1, Sampling(), ask.words, hole,
            )  # fmt: skip
            try:
                with stop_layers(stop or threading.Event()):
                    answer(order, self.predictor)
            except UnigsError as error:
                words = tell_cause(error).replace(f"{given}/", "").replace(f"{room}/", "")
                raise UnigsError(words) from error
            return self.read_answer(order)

    def read_answer(self, order: Order) -> Answer:
        """What the files of an order hold, and their archive."""
        (record,) = (order.out / "records").iterdir()
        about = json.loads(record.read_text("utf-8"))
        drawn = order.out / "images" / f"{record.stem}.png"
        picture = show_picture(drawn if drawn.exists() else Path(order.files[0]))
        with Image.open(order.out / "labels" / f"{record.stem}.png") as labels:
            shown = labels.resize(picture.size, Image.Resampling.NEAREST)
        archive = Path(tempfile.mkdtemp(dir=self.served)) / order.out.name
        zipped = shutil.make_archive(str(archive), "zip", order.out.parent, order.out.name)
        return Answer(
            picture=picture,
            labels=np.asarray(shown, np.int32),
            segments=about["segments"],
            size=(about["width"], about["height"]),
            archive=Path(zipped),
        )

    def describe(self) -> str:
        """One line on what the model is and can do, and what its card says of it first."""
        kind, side_px = name_system(self.model), self.predictor.side_px
        can = ", ".join(self.verbs) or "none of the tasks of this page"
        return (
            f"Model {show(self.name, 200)} ({kind}), made for pictures of {side_px} px. It can: "
            f"{can}. {read_abstract(self.read_card())}"
        ).strip()

    def read_card(self) -> str:
        """The card that lies in the model's folder, without its front matter; empty if none."""
        path = self.model / "README.md"
        if not path.is_file():
            return ""
        text = path.read_text("utf-8", "replace")
        return re.sub(r"\A---\n.*?\n---\n", "", text, count=1, flags=re.DOTALL).strip()


def read_abstract(card: str) -> str:
    """The first paragraph below the title of a card, as plain text."""
    below = re.sub(r"\A# .*\n", "", card).strip().partition("\n\n")[0]
    return " ".join(re.sub(r"[*`]", "", below).split())


def tell_cause(error: UnigsError) -> str:
    """Why the one picture of an order failed, or what else was wrong with it."""
    if isinstance(error, PicturesFailed):
        return "; ".join(error.failed.examples.values())
    return str(error)


@contextmanager
def stop_layers(stop: threading.Event) -> Iterator[None]:
    """Let every layer of torch that this thread calls look whether it is still waited for.

    It works for any system, because all are made of layers, and costs nothing beside them.

    Raises:
        Stopped: by the first layer after ``stop`` is set.
    """
    thread = threading.get_ident()

    def look(*_: Any) -> None:
        if stop.is_set() and threading.get_ident() == thread:
            raise Stopped

    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


class Stops:
    """Who waits for what, so that it can be stopped. Safe for threads."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], threading.Event] = {}

    @contextmanager
    def wait(self, session: str, verb: str) -> Iterator[threading.Event]:
        """An event that is set when this session stops this verb."""
        stop = self._waiting[session, verb] = threading.Event()
        try:
            yield stop
        finally:
            self._waiting.pop((session, verb), None)

    def stop(self, session: str, verb: str | None = None) -> None:
        """Stop what a session waits for: one verb, or all where none is named."""
        for (who, what), stop in list(self._waiting.items()):
            if who == session and verb in (None, what):
                stop.set()
