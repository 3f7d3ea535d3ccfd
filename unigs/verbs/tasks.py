"""``unigs segment``, ``find``, ``inpaint`` and ``paint``: the four tasks on a user's own files.

The signatures are the command lines. Nothing here imports torch: help, and errors in what was
typed, come at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from unigs.records import UnigsError
from unigs.systems.sampling import Sampling
from unigs.verbs.answer import Order, answer
from unigs.verbs.manifest import read_manifest
from unigs.verbs.video import follow_clip

Precision = Literal["auto", "float16", "bfloat16"]


def segment_pictures(
    images: list[str],
    out: Path,
    model: Path | None = None,
    device: str = "auto",
    dtype: Precision = "auto",
    batch_size: int = 4,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    video: bool = False,
) -> None:
    """Find every entity of pictures; each pixel belongs to one mask at most.

    Args:
        images: files, folders and globs; what is not readable is counted and named, and the run
            goes on.
        out: folder for overlays/, labels/ (8-bit palette PNG, or 16 bits above 255 masks), masks/
            (one PNG each), panoptic/ with panoptic.json and results.json (COCO), records/ and
            run.json. Pictures that are done there are kept, so a stopped run goes on.
        model: folder that ``unigs export`` wrote, of any system; default: the small one that ships
            with the package, made for 64 px synthetic scenes.
        device: ``auto`` is a GPU where there is one; or ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: precision of the arithmetic; ``auto`` is that of the weights, float32 on a CPU.
        batch_size: pictures of one size that run together.
        sampling: what to do in another way than the model remembers.
        video: take the images as frames of one clip, in the order of the numbers in their names (of
            a folder those directly in it), or one animated file (GIF, WebP, PNG, TIFF). An entity
            keeps its number over the frames; the model must have learnt to (``network.past`` of
            Pix2SeqD; default: one that ships). Beside the files of each frame: sheet.jpg, and the
            state from which a stopped run goes on.

    Raises:
        UnigsError: what was typed leads nowhere, or at least one picture failed.

    Example:
        unigs segment photo.jpg --out segmented
        unigs segment photos 'more/*.png' --out segmented --model runs/joint/pipeline
        unigs segment --video frames --out followed
    """
    order = Order("segment", "entity", images, out, model, device, dtype, batch_size, sampling)
    (follow_clip if video else answer)(order)


def find_words(
    images: list[str],
    words: list[str],
    out: Path,
    model: Path | None = None,
    device: str = "auto",
    dtype: Precision = "auto",
    batch_size: int = 4,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
) -> None:
    """Find what words name in pictures.

    Masks of several words are not told apart by word; ask word by word where that matters. A model
    may paint a thing that is not there: look at the scores.

    Args:
        images: files, folders and globs.
        words: what to find; any words, though a model knows best those it was trained on.
        out: folder for the same files as of ``unigs segment``.
        model: folder that ``unigs export`` wrote; default: the small one that ships.
        device: ``auto`` is a GPU where there is one; or ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: precision of the arithmetic; ``auto`` is that of the weights, float32 on a CPU.
        batch_size: pictures of one size that run together.
        sampling: what to do in another way than the model remembers.

    Raises:
        UnigsError: what was typed leads nowhere, or at least one picture failed.

    Example:
        unigs find photo.jpg --words star sand --out found
    """
    answer(
        Order("find", "referring", images, out, model, device, dtype, batch_size, sampling, words)
    )


def inpaint_pictures(
    out: Path,
    images: list[str] | None = None,
    mask: Path | None = None,
    words: list[str] | None = None,
    manifest: Path | None = None,
    model: Path | None = None,
    device: str = "auto",
    dtype: Precision = "auto",
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
) -> None:
    """Fill the hole of a picture with what words name, and say where it was drawn.

    Args:
        out: folder for images/, the filled pictures, and the same files as of ``unigs segment``.
        images: a file; or files, folders and globs, with a folder of masks that lie as they do.
        mask: a picture of the same size: what is brighter than half is filled, or what is
            transparent, if it is a picture with a hole; how it was understood is printed. Or a
            folder of such, each with the name of its picture up to the suffix.
        words: what to draw; any words, though a model knows best those it was trained on.
        manifest: in their place a list of many: a CSV with the columns picture, mask, words
            (``star;sand``), or JSON lines with these keys; paths are taken from its folder.
        model: folder that ``unigs export`` wrote; default: the small one that ships.
        device: ``auto`` is a GPU where there is one; or ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: precision of the arithmetic; ``auto`` is that of the weights, float32 on a CPU.
        sampling: what to do in another way than the model remembers.

    Raises:
        UnigsError: what was typed leads nowhere, or at least one picture failed.

    Example:
        unigs inpaint photo.jpg --mask mask.png --words star --out filled
        unigs inpaint --manifest holes.csv --out filled
    """
    asked = {"images": images, "mask": mask, "words": words}
    given = [name for name, value in asked.items() if value]
    if manifest and given:
        raise UnigsError(f"expected --manifest or --{given[0]}, got both")
    if mask is None and manifest is None:
        raise UnigsError("expected --mask FILE or --manifest FILE, got neither")
    rows = read_manifest(manifest) if manifest else []
    files = [str(row.picture) for row in rows] or images or []
    options = (model, device, dtype, 1, sampling, words or (), mask, rows)
    answer(Order("inpaint", "inpainting", files, out, *options))


def paint_labels(
    labels: list[str],
    words: list[str],
    out: Path,
    model: Path | None = None,
    device: str = "auto",
    dtype: Precision = "auto",
    batch_size: int = 4,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
) -> None:
    """Draw a picture whose entities lie where a label map has them.

    Args:
        labels: files, folders and globs of label maps: grey or palette numbers, or flat colours;
            each value but black is one entity.
        words: what they are; any words, though a model knows best those it was trained on.
        out: folder for images/, the drawn pictures, and the same files as of ``unigs segment``.
        model: folder that ``unigs export`` wrote; default: the small one that ships.
        device: ``auto`` is a GPU where there is one; or ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: precision of the arithmetic; ``auto`` is that of the weights, float32 on a CPU.
        batch_size: pictures of one size that run together.
        sampling: what to do in another way than the model remembers.

    Raises:
        UnigsError: what was typed leads nowhere, or at least one label map failed.

    Example:
        unigs paint labels.png --words star sand --out painted
    """
    answer(
        Order("paint", "synthesis", labels, out, model, device, dtype, batch_size, sampling, words)
    )
