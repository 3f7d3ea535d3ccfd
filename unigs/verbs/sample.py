"""``unigs sample``: one picture and all that can be looked at, or every task on a drawn scene.

In: a task and the files of a user; or nothing, and a scene that no training has seen is drawn for
all four tasks. Out: picture, colormap, label map and their list, and a sheet. The verbs of
``verbs.tasks`` do the same for many pictures, in files for other tools. No torch here: help and
errors come at once.
"""

from __future__ import annotations

from pathlib import Path

from unigs.records import UnigsError
from unigs.systems.sampling import Sampling
from unigs.verbs.model import locate_model, name_system
from unigs.verbs.request import check_request, read_request

SYSTEM = "UniGSPipeline"
"""The system whose four tasks and colormaps are shown."""


def sample_pictures(
    out: Path,
    task: str | None = None,
    image: Path | None = None,
    mask: Path | None = None,
    labels: Path | None = None,
    words: list[str] | None = None,
    prompt: str | None = None,
    pipeline: Path | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
) -> None:
    """Inpaint, synthesise, refer or segment one picture; without a task, try all four at once.

    Args:
        out: folder for image.png, colormap.png, labels.png (16-bit grey, 0 = background), all of
            the input's size, masks.json (label, score, area, box of each entity) and sheet.png;
            without a task for sheet.png and the drawn scene. Older ones there are replaced.
        task: inpainting, synthesis, referring or entity; without one a held-out scene is drawn and
            all four run on it.
        image: the picture of inpainting, referring and entity; shown as a viewer turns it.
        mask: a picture of the same size: what is brighter than half is filled (inpainting) or
            searched (referring, where it may be left out), or what is transparent, if it is a
            picture with a hole; how it was understood is printed.
        labels: the entities to synthesise: a grey or palette label map, or flat colours; each value
            but black is one entity.
        words: what to draw or find; any words, though a model knows best those it was trained on.
        prompt: the whole prompt, instead of words.
        pipeline: folder of UniGS that ``unigs export`` wrote; default: the small one that ships
            with the package, made for 64 px synthetic scenes.
        sampling: what to do in another way than the model remembers; its seed is also that of the
            scene, if one is drawn.

    Raises:
        UnigsError: a file that is missing, unreadable or of another size; an option that the task
            needs and lacks, or has and would ignore; no pipeline.

    Example:
        unigs sample --out tryout
        unigs sample --task entity --image photo.jpg --out segmented
        unigs sample --task referring --image photo.jpg --words star sand --out found
        unigs sample --task inpainting --image photo.jpg --mask mask.png --words star --out new
        unigs sample --task synthesis --labels labels.png --words star sand --out made
    """
    given = {"image": image, "mask": mask, "labels": labels}
    check_request(task, given, words, prompt)
    if out.exists() and not out.is_dir():  # before the work, not after it
        raise UnigsError(f"expected a folder to write to, got a file, at {out}")
    model = locate_model(pipeline, "--pipeline")
    if (system := name_system(model)) != SYSTEM:
        raise UnigsError(
            f"expected a {SYSTEM}, got a {system}, at {model}; it works with unigs segment"
        )
    chosen = None if task is None else read_request(task, image, mask, labels, words, prompt)
    from unigs.verbs.tryout import try_out, write_files  # torch, from here on

    write_files(out, try_out(chosen, model, sampling))
