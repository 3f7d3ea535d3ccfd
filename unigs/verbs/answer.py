"""One order of a task verb, from what was typed to its files.

What can be wrong with an order is said before the model is loaded: the model's own code, and torch
with it, is imported by :func:`answer` once the first picture is read.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from unigs.files import DiskFull, hash_file
from unigs.images import UnreadableImage
from unigs.outputs import OutFolder
from unigs.records import Skips, TaskSample, UnigsError, show
from unigs.systems.sampling import Sampling
from unigs.tasks import RECIPES
from unigs.verbs.gather import SUFFIXES, Picture, gather_pictures
from unigs.verbs.manifest import Row
from unigs.verbs.model import hash_model, list_versions, locate_model, name_system
from unigs.verbs.request import list_inputs, read_request, speak_words

if TYPE_CHECKING:
    from unigs.systems.predictor import SystemPredictor
    from unigs.verbs.running import Runner


@dataclass(frozen=True, slots=True)
class Order:
    """What was typed.

    Attributes:
        verb, task: ``segment`` asks for ``entity``, and so on.
        files: pictures, or label maps: files, folders, globs.
        out, model, device, dtype, batch_size, sampling: see ``verbs.tasks``.
        words: names of things; a task that draws nothing by name has none.
        mask: a file, or a folder of them; None where the task has none.
        rows: of a list, instead of ``words`` and ``mask``: each picture's own.
    """

    verb: str
    task: str
    files: Sequence[str]
    out: Path
    model: Path | None
    device: str
    dtype: str
    batch_size: int
    sampling: Sampling
    words: Sequence[str] = ()
    mask: Path | None = None
    rows: Sequence[Row] = ()

    @property
    def option(self) -> str:
        """Which input the files are: ``image`` or ``labels``."""
        return list_inputs(self.task)[0][0]


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A picture that was read.

    Attributes:
        picture: its file and names.
        inputs: sha256 of each file, by option.
        sample: at the picture's own size.
        words: what was asked for.
    """

    picture: Picture
    inputs: Mapping[str, str]
    sample: TaskSample
    words: Sequence[str] = ()


class PicturesFailed(UnigsError):
    """Pictures of an order could not be used; the others are made.

    Attributes:
        failed: counts by reason, and what was said of the first of each.
    """

    def __init__(self, made: int, failed: Skips) -> None:
        super().__init__(
            f"expected {made + failed.total} usable pictures, got {failed.total} that are not: "
            f"{failed}"
        )
        self.failed = failed


def answer(order: Order, loaded: SystemPredictor | None = None) -> None:
    """Carry an order out.

    Args:
        order: what was typed.
        loaded: the model of the order where it is loaded already, on the order's device.

    Raises:
        UnigsError: what was typed leads nowhere.
        PicturesFailed: at the end, if a picture failed.
    """
    check_order(order)
    model = locate_model(order.model)
    root, pictures = gather_pictures(order.files, order.out, order.option.upper(), order.mask)
    rows = pair_rows(order, pictures)
    folder = OutFolder(order.out, describe_order(order, model, root), {"versions": list_versions()})
    todo = list(find_open(folder, pictures, rows))
    if kept := len(pictures) - len(todo):
        print(f"{kept} of {len(pictures)} are done already and kept, at {order.out}")
    if changed := sum(folder.holds(one.key, one.file_name) for one in todo):
        print(f"{changed} pictures changed and are made again, at {order.out}")
    failed = Skips()
    items = read_items(order, todo, rows, failed)
    made, first = 0, next(items, None)
    if first is not None:  # one that can be read is worth loading a model for
        from unigs.verbs.device import choose_device  # torch, from here on

        order = replace(order, device=choose_device(order.device))
        from unigs.verbs.running import load_runner  # all that models need

        runner = load_runner(order, model, loaded)
        made = run_model(order.verb, runner, chain([first], items), len(todo), folder, failed)
    folder.close({"made": made, "kept": kept, "failed": failed.counts})
    tell_end(order, made, failed)


def check_order(order: Order) -> None:
    """Refuse words and numbers that no run can use.

    Raises:
        UnigsError: says the option.
    """
    if RECIPES[order.task].draws and not order.words and not order.rows:
        raise UnigsError("expected words, as in --words star sand, got none")
    for words in [order.words, *(row.words for row in order.rows)]:
        speak_words(words)
    if order.batch_size < 1:
        raise UnigsError(f"expected 1 or more pictures, got {order.batch_size}, at --batch_size")


def describe_order(order: Order, model: Path, root: Path) -> dict[str, Any]:
    """What decides an answer, for the run's record.

    ``root`` holds what was given; a picture of the same name elsewhere is another run's. ``images``
    holds what COCO's files name: the pictures given, or those that were drawn.
    """
    draws = RECIPES[order.task].draws_picture
    return {
        "verb": order.verb,
        "task": order.task,
        "words": list(order.words),
        "model": {"system": name_system(model), "sha256": hash_model(model)},
        "sampling": order.sampling.list_given(),
        "dtype": order.dtype,
        "root": str(root),
        "images": str((order.out / "images").resolve() if draws else root),
    }


def pair_rows(order: Order, pictures: Sequence[Picture]) -> dict[str, Row]:
    """Mask and words of each picture, by key; of a list its own."""
    if order.rows:
        mine = {row.picture.resolve(): row for row in order.rows}
        return {one.key: mine[one.path.resolve()] for one in pictures}
    masks = pair_masks(order.mask, pictures)
    words = tuple(order.words)
    return {one.key: Row(one.path, masks.get(one.key), words) for one in pictures}


def pair_masks(mask: Path | None, pictures: Sequence[Picture]) -> dict[str, Path]:
    """The mask of each picture, by key.

    In a folder a picture's mask lies where the picture lies below its root, under its name with any
    suffix; or anywhere, if no other picture and no other mask has that name.

    Raises:
        UnigsError: no such file, one file for several pictures, a picture without a mask or with
            several.
    """
    if mask is None:
        return {}
    if not mask.is_dir():
        if not mask.exists():
            raise UnigsError(f"expected a mask, found nothing of this name: {mask}, at --mask")
        if len(pictures) > 1:
            raise UnigsError(
                f"expected a folder of masks for {len(pictures)} pictures, got a file, at {mask}"
            )
        return {pictures[0].key: mask}
    by_name, by_stem = defaultdict(list), defaultdict(list)
    for path in sorted(mask.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            by_name[path.relative_to(mask).with_suffix("").as_posix()].append(path)
            by_stem[path.stem].append(path)
    stems = Counter(one.path.stem for one in pictures)
    masks: dict[str, Path] = {}
    owners: dict[Path, Path] = {}
    for one in pictures:
        stem, name = one.path.stem, Path(one.file_name).with_suffix("").as_posix()
        found = by_name.get(name) or (by_stem.get(stem) if stems[stem] == 1 else None) or []
        if len(found) != 1:
            came = " and ".join(map(str, found)) or "none"
            where = f"for {one.path}, got {came}, in {mask}"
            raise UnigsError(f"expected one mask named {name} {where}")
        if (owner := owners.setdefault(found[0], one.path)) != one.path:
            raise UnigsError(
                f"expected a mask for each picture, got one for {owner} and {one.path}, at "
                f"{found[0]}"
            )
        masks[one.key] = found[0]
    return masks


def find_open(
    folder: OutFolder, pictures: Iterable[Picture], rows: Mapping[str, Row]
) -> Iterator[Picture]:
    """The pictures that are not done yet."""
    for picture in pictures:
        if not folder.has(picture.key, hash_inputs(rows[picture.key])):
            yield picture


def hash_inputs(row: Row) -> dict[str, str]:
    """sha256 of all that an answer is made of, by option; empty of a file that cannot be read."""
    digests: dict[str, str] = {}
    for option, path in (("picture", row.picture), ("mask", row.mask)):
        try:
            digests |= {} if path is None else {option: hash_file(path)}
        except OSError:
            digests[option] = ""
    if row.words:
        digests["words"] = hashlib.sha256("\n".join(row.words).encode()).hexdigest()
    return digests


def read_items(
    order: Order, pictures: Iterable[Picture], rows: Mapping[str, Row], failed: Skips
) -> Iterator[Item]:
    """Read one picture after the other; those that cannot be used are told and counted."""
    for picture in pictures:
        row = rows[picture.key]
        files = {"image": None, "labels": None, order.option: picture.path}
        try:
            sample = read_request(
                order.task, files["image"], row.mask, files["labels"], row.words, None
            )
        except (UnigsError, MemoryError) as error:
            tell_failure(failed, picture.path, error)
            continue
        yield Item(picture, hash_inputs(row), sample, row.words)


def run_model(
    verb: str, runner: Runner, items: Iterable[Item], count: int, folder: OutFolder, failed: Skips
) -> int:
    """Write an answer to each item; how many were made."""
    made = 0
    refuse: Callable[[Item, Exception], None] = lambda item, error: tell_failure(
        failed, item.picture.path, error
    )
    with tqdm(total=count, desc=verb, unit="picture") as bar:
        for found in runner.run(items, refuse):
            folder.write(found)
            made += 1
            bar.update(made + failed.total - bar.n)
    return made


def tell_failure(failed: Skips, path: Path, error: Exception) -> None:
    """Count a picture that failed and say why, unless nothing can be written any more."""
    if isinstance(error, DiskFull):
        raise error
    cause = error.__cause__
    reason = cause.reason if isinstance(cause, UnreadableImage) else "picture that failed"
    said = str(error) or type(error).__name__
    place = "" if str(path) in said else f", at {path}"
    failed.add(reason, said + place)
    tqdm.write(f"left out: {show(said + place)}")


def tell_end(order: Order, made: int, failed: Skips) -> None:
    """Say what was written and where to look.

    Raises:
        PicturesFailed: at least one.
    """
    if made:
        print(f"{made} of {made + failed.total} written; look first at {order.out / 'overlays'}")
    if failed.total:
        raise PicturesFailed(made, failed)
