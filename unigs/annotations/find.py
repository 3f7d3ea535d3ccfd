"""Finds the annotation files of a data set by their released names.

In: the root folder of each data set. Out: a ``Source`` per kind and split, not yet indexed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict, Unpack, cast

from unigs.annotations import ade20k, cityscapes, coco, davis, entityseg, openimages
from unigs.annotations.base import Source
from unigs.annotations.names import HIDDEN_TWIN, require_file, require_folder
from unigs.files import FileRefused, explain_errors, read_inside
from unigs.records import UnigsError

LICENCE_FILE = "licence.txt"
"""One line beside the data that replaces the data set's usual terms."""

MAX_LICENCE_BYTES = 1 << 16


class Roots(TypedDict, total=False):
    """Where data sets lie, each as it is distributed; those not given are left out.

    Attributes:
        coco: root of COCO: ``annotations/{panoptic,instances}_<split>2017.json``,
            ``<split>2017/``.
        openimages: root of Open Images: ``<split>-annotations-object-segmentation.csv``,
            ``images/<split>/``, ``masks/`` or ``mask_zips/``, ``class-descriptions-boxable.csv``.
        entityseg: root of EntitySeg: ``annotations/entity_segmentation/
            entityv2_010203_entity_<split>.json`` and ``images/``, or the ``_lr`` files and
            ``images_lr/``, or ``annotations/entityseg_<split>.json``.
        cityscapes: root of Cityscapes: ``leftImg8bit/<split>/``, ``gtFine/<split>/``.
        ade20k: root of ADEChallengeData2016: ``images/<split>/``, ``annotations/<split>/``,
            ``objectInfo150.txt``, and if there are instance maps ``annotations_instance/<split>/``.
        davis: root of DAVIS: ``JPEGImages/480p/<clip>/``, ``Annotations/480p/<clip>/``,
            ``ImageSets/2017/<split>.txt`` or ``ImageSets/2016/<split>.txt``.
    """

    coco: Path | None
    openimages: Path | None
    entityseg: Path | None
    cityscapes: Path | None
    ade20k: Path | None
    davis: Path | None


def find_sources(**roots: Unpack[Roots]) -> list[Source]:
    """Every split that lies under the given roots.

    Args:
        **roots: see :class:`Roots`.

    Returns:
        Sources named ``coco-panoptic``, ``coco-instances``, ``openimages``, ``entityseg``,
        ``cityscapes``, ``ade20k-panoptic`` or ``ade20k-semantic``, ``davis``; splits ``train``,
        ``val``, ``test``.

    Raises:
        UnigsError: a root holds no annotation file, or one without its pictures or masks.
    """
    sources: list[Source] = []
    given = cast(dict[str, Path | None], roots)
    for name, (find, expected) in FINDERS.items():
        root = given.get(name)
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


def _find_cityscapes(root: Path) -> Iterator[Source]:
    licence = _read_licence(root, cityscapes.LICENCE)
    for split in ("train", "val"):
        maps = root / "gtFine" / split
        if maps.is_dir():
            images = require_folder(root / "leftImg8bit" / split, f"the pictures of {maps}")
            yield cityscapes.make_cityscapes(images, maps, split, licence)


def _find_ade20k(root: Path) -> Iterator[Source]:
    licence = _read_licence(root, ade20k.LICENCE)
    for split, released in (("train", "training"), ("val", "validation")):
        maps = root / "annotations" / released
        if maps.is_dir():
            images = require_folder(root / "images" / released, f"the pictures of {maps}")
            instances = root / "annotations_instance" / released
            folders = images, maps, instances if instances.is_dir() else None
            tables = [root / f"objectInfo150.{ending}" for ending in ("txt", "csv")]
            table = next((path for path in tables if path.is_file()), tables[0])
            yield ade20k.make_ade20k(folders, table, split, licence)


def _find_davis(root: Path) -> Iterator[Source]:
    licence = _read_licence(root, davis.LICENCE)
    found = [size for size in davis.RESOLUTIONS if (root / "JPEGImages" / size).is_dir()]
    for split in ("train", "val"):
        lists = [root / "ImageSets" / name / f"{split}.txt" for name in davis.SETS]
        listed = next((path for path in lists if path.is_file()), None)
        if listed and found:
            images = root / "JPEGImages" / found[0]
            maps = require_folder(root / "Annotations" / found[0], f"the annotations of {images}")
            yield davis.make_davis(images, maps, listed, split, licence)


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


FINDERS: dict[str, tuple[Callable[[Path], Iterator[Source]], str]] = {
    "coco": (
        _find_coco,
        "annotations/panoptic_<split>2017.json or instances_<split>2017.json",
    ),
    "openimages": (_find_openimages, "<split>-annotations-object-segmentation.csv"),
    "entityseg": (_find_entityseg, "annotations/entity_segmentation/*_entity_<split>.json"),
    "cityscapes": (_find_cityscapes, "gtFine/<split> and leftImg8bit/<split>"),
    "ade20k": (_find_ade20k, "annotations/training or annotations/validation"),
    "davis": (_find_davis, "ImageSets/2017/<split>.txt and JPEGImages/480p/<clip>"),
}
"""By data set: what finds its splits, and what must be there."""
