"""The four tasks as one table: what is known, what is to be made, in which words (Table 2).

A task is a row of ``RECIPES``, not a model and not a loss. All that depends on a task stands in its
row: training, sampling, decoding and judging read the same ones, so they cannot disagree. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from unigs.records import TASKS


@dataclass(frozen=True, slots=True)
class Recipe:
    """One row of Table 2.

    Attributes:
        prompt: the words; ``{names}`` is the English list of the drawn categories.
        context: the picture behind z_c.
        given: the stream that equals the context and needs no VAE pass of its own, if any.
        local: the coarse mask covers the drawn entities (True) or the whole picture (False).
        draws: a few entities are drawn (True) or all are meant (False).
        mode: how the answer's colormap is decoded: as a full partition (``entity``), or with black
            as background (``foreground``).
        negatives: some drawn entities are asked for under the name of something that is not there.
        judged: by what an answer is scored besides its masks: nothing, or what a segmenter finds in
            the picture that was drawn, in the place that was asked for (``placed``) or by its name
            inside the coarse mask (``named``).
        guidance: default classifier-free guidance of the image stream by the words; 1 is off.
        entity_guidance: the same by a given colormap.
    """

    prompt: str
    context: Literal["masked image", "image", "colormap"]
    given: Literal["image", "colormap"] | None
    local: bool
    draws: bool
    mode: Literal["entity", "foreground"]
    negatives: bool = False
    judged: Literal["placed", "named"] | None = None
    guidance: float = 1.0
    entity_guidance: float = 1.0

    @property
    def draws_picture(self) -> bool:
        """Whether the picture is part of the answer."""
        return self.given != "image"


RECIPES: dict[str, Recipe] = {
    "inpainting": Recipe(
        "inpainting: generate {names}.", "masked image", None, True, True, "foreground",
        judged="named", guidance=4.0,
    ),
    "synthesis": Recipe(
        "synthesis: generate {names}.", "colormap", "colormap", False, True, "foreground",
        judged="placed", guidance=4.0, entity_guidance=2.0,
    ),
    "referring": Recipe(
        "referring: find {names}.", "image", "image", True, True, "foreground", negatives=True
    ),
    "entity": Recipe("panoptic: all entities.", "image", "image", False, False, "entity"),
}  # fmt: skip
"""Table 2. Guidance shifts colours, so tasks that only make a colormap go without."""


def list_inputs(task: str) -> tuple[list[str], list[str]]:
    """Inputs that a task needs and those it may have beside them, by its recipe.

    Of ``image``, ``labels``, ``mask``, ``prompt`` and ``words``.
    """
    recipe = RECIPES[task]
    needs = ["labels" if recipe.context == "colormap" else "image"]
    takes = ["prompt"]
    if recipe.draws:
        takes.append("words")
    if recipe.local:  # a hole must be given, a place to search may be
        (needs if recipe.context == "masked image" else takes).append("mask")
    return needs, takes


def list_misfits(task: str, given: Iterable[str]) -> tuple[list[str], list[str]]:
    """Inputs that a task needs and lacks, and those given that it would ignore."""
    (needs, takes), names = list_inputs(task), list(given)
    lacks = [name for name in needs if name not in names]
    return lacks, [name for name in names if name not in (*needs, *takes)]


def english_list(names: Sequence[str]) -> str:
    """Join names as English does: ``dog``; ``dog and sky``; ``dog, ground, and sky``."""
    if len(names) <= 2:
        return " and ".join(names)
    return ", ".join(names[:-1]) + f", and {names[-1]}"


def speak_category(name: str) -> str:
    """A category as one says it: ``Dog`` -> ``dog``, ``sky-other-merged`` -> ``sky``.

    COCO's merged stuff and EntitySeg's leftovers carry suffixes that are no words; capitals differ
    between data sets and would make two categories of one.
    """
    words = name.lower().replace("_", "-").split("-")
    kept = [word for word in words if word not in ("merged", "other", "stuff", "ot")]
    return " ".join(kept or words)


def write_prompt(task: str, names: Sequence[str]) -> str:
    """The prompt of Table 2 for the drawn categories; a repeated name is said once."""
    return RECIPES[task].prompt.format(names=english_list(list(dict.fromkeys(names))))


assert tuple(RECIPES) == TASKS, "the order of RECIPES is the task embedding's order"
