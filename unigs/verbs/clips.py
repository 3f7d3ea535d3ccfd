"""``unigs evaluate clips``: J&F of models that follow entities, on clips of DAVIS or like it.

No torch before names and clips are found: help and errors come at once.
"""

from __future__ import annotations

from pathlib import Path

from unigs.annotations import find_sources
from unigs.records import UnigsError
from unigs.systems.sampling import Sampling
from unigs.verbs.evaluate import check_names


def evaluate_on_clips(
    models: list[str],
    davis: Path,
    out: Path,
    split: str = "val",
    clips: int | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
) -> None:
    """Print and write J&F and id switches of one or more models, with intervals over clips.

    A model that looks back has three rows: no past, the true past (a ceiling), and its own. The
    last row copies the truth of the first frame.

    Args:
        models: folders that ``unigs export`` wrote, of Pix2SeqD; names of models that ship.
        davis: root of DAVIS as released, or of ``unigs synthetic clips``.
        out: folder; results of each row in a folder of its name, and one report over all.
        split: train or val.
        clips: only the first so many.
        sampling: what to do in another way than each model remembers.

    Raises:
        UnigsError: no such clips, a model of another system, or results of something else in
            ``out``.

    Example:
        unigs evaluate clips --models pix2seq-d-video --davis DAVIS --out runs/clips/eval
    """
    check_names(models)
    found = {source.split: source for source in find_sources(davis=davis)}
    if split not in found:
        raise UnigsError(f"expected a split of {', '.join(sorted(found))}, got {split}, at {davis}")
    source = found[split]
    source.require_pictures()
    from unigs.verbs.scoring import score_followers  # torch, from here on

    print(score_followers(models, source, clips, out, sampling))
