"""Finds the annotation files of a data set by their released names.

In: the root folder of each data set. Out: a ``Source`` per kind and split, not yet indexed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unigs.annotations import coco, entityseg, openimages
from unigs.annotations.base import Source
from unigs.annotations.names import HIDDEN_TWIN, require_file, require_folder
from unigs.files import FileRefused, explain_errors, read_inside
from unigs.records import UnigsError

LICENCE_FILE = "licence.txt"
"""One line beside the data that replaces the data set's usual terms."""

MAX_LICENCE_BYTES = 1 << 16


def find_sources(
    coco: Path | None = None, openimages: Path | None = None, entityseg: Path | None = None
) -> list[Source]:
    """Every split that lies under the given roots.

    Args:
        coco: holds ``annotations/{panoptic,instances}_<split>2017.json`` and ``<split>2017/``.
        openimages: holds ``<split>-annotations-object-segmentation.csv``, ``images/<split>/``,
            ``masks/`` or ``mask_zips/``, and ``class-descriptions-boxable.csv``.
        entityseg: holds ``annotations/entity_segmentation/entityv2_010203_entity_<split>.json``
            and ``images/``, or the ``_lr`` files and ``images_lr/``, or
            ``annotations/entityseg_<split>.json``.

    Returns:
        Sources named ``coco-panoptic``, ``coco-instances``, ``openimages``, ``entityseg``; splits
        ``train``, ``val``, ``test``.

    Raises:
        UnigsError: a root holds no annotation file, or one without its pictures or masks.
    """
    sources: list[Source] = []
    for root, find, expected in (
        (coco, _find_coco, "annotations/panoptic_<split>2017.json or instances_<split>2017.json"),
        (openimages, _find_openimages, "<split>-annotations-object-segmentation.csv"),
        (entityseg, _find_entityseg, "annotations/entity_segmentation/*_entity_<split>.json"),
    ):
        if root is None:
            continue
        with explain_errors(f"to find {expected}", Path(root)):
            found = list(find(require_folder(Path(root), expected)))
        if not found:
            raise UnigsError(f"expected {expected}, came none, in {root}")
        sources += found
    return sources


def _find_coco(root: Path) -> Iterator[Source]:
    licence = _read_licence(root, coco.LICENCE)
    folder = root / "annotations"
    for split in ("train", "val"):
        name, images = f"{split}2017", root / f"{split}2017"
        for json in _panoptic_files(folder, name):
            require_folder(images, f"the pictures of {json.name}")
            masks = json.with_suffix("")
            if not masks.is_dir():
                raise UnigsError(
                    f"expected the PNGs of {json.name}, came no such folder, at {masks}. "
                    f"{coco.UNPACKING_HINT}"
                )
            yield coco.make_coco_panoptic(json, masks, images, split, licence)
        json = folder / f"instances_{name}.json"
        if json.is_file():
            require_folder(images, f"the pictures of {json.name}")
            yield coco.make_coco_instances(json, images, split, licence)


def _panoptic_files(folder: Path, name: str) -> list[Path]:
    """The released name, else one conversion of another name that has its folder of PNGs."""
    released = folder / f"panoptic_{name}.json"
    if released.is_file():
        return [released]
    others = sorted(folder.glob(f"panoptic_*{name}.json"))  # no file of macOS begins so
    return [json for json in others if json.with_suffix("").is_dir()][:1]


def _find_openimages(root: Path) -> Iterator[Source]:
    licence = _read_licence(root, openimages.LICENCE)
    for split, released in openimages.RELEASED_SPLITS.items():
        csv = root / f"{released}-annotations-object-segmentation.csv"
        if not csv.is_file():
            continue
        pictures = (f"images/{released}", released, "data", "images")
        images = _first_folder(root, pictures, f"{released}_?", "pictures", csv)
        folders = ("masks", "mask_zips", "labels/masks", f"{released}-masks")
        masks = _first_folder(root, folders, f"{released}-masks-?*", "masks", csv)
        classes = [
            path
            for path in sorted(root.glob("*class-descriptions*.csv"))
            if not path.name.startswith(HIDDEN_TWIN)
        ]
        names = require_file(
            classes[0] if classes else root / "class-descriptions-boxable.csv", "class names"
        )
        yield openimages.OpenImages(csv, masks, images, names, split, licence=licence)


def _first_folder(root: Path, names: tuple[str, ...], parts: str, holds: str, csv: Path) -> Path:
    """The first of some folders; the root itself where the download was unpacked into parts."""
    for name in names:
        if (root / name).is_dir() and (name != "images" or any((root / name).glob(parts))):
            return root / name
    if any(root.glob(parts)):
        return root
    raise UnigsError(
        f"expected the {holds} of {csv.name} in one of {', '.join(names)}, came none, in {root}"
    )


def _find_entityseg(root: Path) -> Iterator[Source]:
    licence = _read_licence(root, entityseg.LICENCE)
    released = "annotations/entity_segmentation/entityv2_010203_entity"
    for split in ("train", "val"):
        for name, pictures in (
            (f"{released}_{split}.json", "images"),
            (f"{released}_{split}_lr.json", "images_lr"),
            (f"annotations/entityseg_{split}.json", "images"),
        ):
            json = root / name
            if json.is_file():
                images = require_folder(root / pictures, f"the pictures of {json.name}")
                yield entityseg.make_entityseg(json, images, split, licence)
                break


def _read_licence(root: Path, usual: str) -> str:
    """The line beside the data in whatever encoding; it is quoted, not read."""
    try:
        data = read_inside(root, LICENCE_FILE, MAX_LICENCE_BYTES)
    except FileNotFoundError:
        return usual
    except FileRefused as error:
        raise UnigsError(
            f"expected one line of licence, got: {error.reason}, at {error.where}"
        ) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.strip()
