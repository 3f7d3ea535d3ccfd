"""The four tasks: what is known, what is to be made, and in which words (Table 2, Algorithm 1).

In: one ``Annotated`` picture and its place in the stream. Out: one ``TaskSample``, a pure function
of (picture, options, seed, index). A task is a row of ``RECIPES``, not a model and not a loss;
``diffusion`` and ``pipeline`` read the same rows, so training and sampling cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from unigs.records import TASKS, Annotated, Entity, TaskSample, UnigsError
from unigs.seeds import rng as seeded_rng
from unigs.transforms import apply_crop, center_crop, random_crop


@dataclass(frozen=True, slots=True)
class Recipe:
    """One row of Table 2.

    Attributes:
        prompt: the words; ``{names}`` is the English list of the drawn categories.
        context: the picture behind z_c.
        given: the stream that equals the context and needs no VAE pass of its own, if any.
        local: the coarse mask covers the drawn entities (True) or the whole picture (False).
        draws: a few entities are drawn (True) or all are meant (False).
        guidance: default classifier-free guidance of the image stream by the words; 1 is off.
        entity_guidance: the same by a given colormap.
    """

    prompt: str
    context: Literal["masked image", "image", "colormap"]
    given: Literal["image", "colormap"] | None
    local: bool
    draws: bool
    guidance: float
    entity_guidance: float = 1.0


RECIPES: dict[str, Recipe] = {
    "inpainting": Recipe("inpainting: generate {names}.", "masked image", None, True, True, 4.0),
    "synthesis": Recipe(
        "synthesis: generate {names}.", "colormap", "colormap", False, True, 4.0, 2.0
    ),
    "referring": Recipe("referring: find {names}.", "image", "image", True, True, 1.0),
    "entity": Recipe("panoptic: all entities.", "image", "image", False, False, 1.0),
}
"""Table 2. Guidance shifts colours, so tasks that only make a colormap go without."""


@dataclass(frozen=True)
class TaskOptions:
    """How samples are made of pictures.

    Args:
        resolution_px: side of the square a sample is cut to.
        max_entities: at most this many are drawn for tasks that draw (paper: 4, evaluation 3).
        negative_probability: lambda, the share of drawn referring entities that become negatives.
        arbitrary_mask_percent: share of irregular blobs among the coarse masks (Algorithm 1).
        extension: each side of a box moves outward by up to this part of the free space beside it.
            The paper names an "extended box" and not its size.
        text_dropout: share of prompts left empty, for classifier-free guidance.
        min_area: entities under this part of the square are not drawn.
        palette_cells: cells per side of the palette; its square is the most entities painted.
    """

    resolution_px: int = 512
    max_entities: int = 4
    negative_probability: float = 0.2
    arbitrary_mask_percent: float = 0.5
    extension: float = 0.4
    text_dropout: float = 0.1
    min_area: float = 1 / 1024
    palette_cells: int = 11

    def for_evaluation(self) -> TaskOptions:
        """The same without dropout and with at most 3 entities (Sec. 4)."""
        return replace(self, text_dropout=0.0, max_entities=min(3, self.max_entities))


class UnusableSample(UnigsError):
    """The picture has nothing this task could ask for; the stream counts it and takes another."""


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


# --- coarse masks: Omega of Eq. 9, Algorithm 1 -------------------------------------------------


def entity_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a bool mask [H, W] in pixels, right and bottom exclusive."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


def extend_box(
    box: tuple[int, int, int, int], height: int, width: int, extension: float, rng
) -> tuple[int, int, int, int]:
    """Move each side outward by a random part, up to ``extension``, of the room beside it."""
    left, top, right, bottom = box
    room = np.array([left, top, width - right, height - bottom])
    out = np.floor(rng.random(4) * extension * room).astype(int)
    return left - out[0], top - out[1], right + out[2], bottom + out[3]


def bezier(start, control, end, at: np.ndarray) -> np.ndarray:
    """Points [len(at), 2] of the quadratic Bezier arc at parameters 0..1."""
    t = at[:, None]
    start, control, end = np.asarray(start), np.asarray(control), np.asarray(end)
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def draw_blob(box, extended, height: int, width: int, rng) -> np.ndarray:
    """Algorithm 1: four arcs between the box's corners, bent towards the extended box's edges.

    Each arc is sampled at 18 points, each moved by up to 5 px at 512 px (in proportion elsewhere).
    """
    (x0, y0, x1, y1), (ex0, ey0, ex1, ey1) = box, extended
    mid_x, mid_y, at = (x0 + x1) / 2, (y0 + y1) / 2, np.arange(1, 19) * 0.05
    arcs = [
        bezier((x0, y0), (mid_x, ey0), (x1, y0), at),
        bezier((x1, y0), (ex1, mid_y), (x1, y1), at),
        bezier((x1, y1), (mid_x, ey1), (x0, y1), at),
        bezier((x0, y1), (ex0, mid_y), (x0, y0), at),
    ]
    jitter_px = round(5 * max(height, width) / 512)
    points = np.concatenate(arcs)
    points = points + rng.integers(-jitter_px, jitter_px + 1, points.shape)
    canvas = Image.new("1", (width, height))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in points.tolist()], fill=1)
    return np.array(canvas)


def draw_coarse_mask(masks: Sequence[np.ndarray], options: TaskOptions, rng) -> np.ndarray:
    """The union over entities of a blob or an extended box around each.

    Args:
        masks: bool [H, W] each, none empty.
        options: shares and extension.
        rng: keyed generator.

    Returns:
        bool [H, W]; True is to be filled.
    """
    height, width = masks[0].shape
    coarse = np.zeros((height, width), bool)
    for mask in masks:
        box = entity_box(mask)
        extended = extend_box(box, height, width, options.extension, rng)
        if rng.random() < options.arbitrary_mask_percent:
            coarse |= draw_blob(box, extended, height, width, rng)
        else:
            left, top, right, bottom = extended
            coarse[top:bottom, left:right] = True
    return coarse


# --- a sample ----------------------------------------------------------------------------------


def drawable_entities(annotated: Annotated, areas: np.ndarray, options: TaskOptions):
    """Entities that can be asked for by name: single, named, and large enough in the window."""
    least = max(1.0, options.min_area * options.resolution_px**2)
    return [
        e
        for e in annotated.entities
        if not e.is_crowd and e.category not in ("", "unknown") and areas[e.label] >= least
    ]


def draw_entities(annotated: Annotated, areas: np.ndarray, options: TaskOptions, rng):
    """1 to ``max_entities`` of the drawable ones, in random order.

    Raises:
        UnusableSample: there is none.
    """
    choices = drawable_entities(annotated, areas, options)
    if not choices:
        raise UnusableSample(
            f"expected a named entity of at least {options.min_area:.2%} of the window, "
            f"found none of {len(annotated.entities)} in {annotated.source}/{annotated.key}"
        )
    count = int(rng.integers(1, min(options.max_entities, len(choices)) + 1))
    return [choices[i] for i in rng.permutation(len(choices))[:count]]


def split_negatives(
    drawn: Sequence[Entity], present: set[str], vocabulary: Sequence[str], probability: float, rng
) -> tuple[list[Entity], list[str]]:
    """Turn some drawn entities into negatives: another name in the prompt, no place in the map.

    Args:
        drawn: the drawn entities.
        present: spoken categories inside the coarse mask; never used as a negative.
        vocabulary: spoken categories a negative may be named after.
        probability: lambda, for each entity by itself.
        rng: keyed generator.

    Returns:
        The entities to paint and the names to ask for, in prompt order.
    """
    absent = [name for name in vocabulary if name not in present]
    painted, names = [], []
    for entity in drawn:
        if absent and rng.random() < probability:
            names.append(absent[int(rng.integers(len(absent)))])
        else:
            painted.append(entity)
            names.append(speak_category(entity.category))
    return painted, names


def relabel(labels: np.ndarray, entities: Sequence[Entity]) -> np.ndarray:
    """Keep only ``entities``, numbered 1..N in the given order: int32 [H, W]."""
    table = np.zeros(int(labels.max(initial=0)) + 1, np.int32)
    for number, entity in enumerate(entities, 1):
        table[entity.label] = number
    return table.take(labels)


def unknown_pixels(annotated: Annotated, labels: np.ndarray, unlabelled: bool) -> np.ndarray:
    """Where the colormap's truth is not known: crowds and, if asked, unlabelled pixels; bool."""
    crowds = [e.label for e in annotated.entities if e.is_crowd]
    unknown = np.zeros(labels.shape, bool)
    for label in [*crowds, 0] if unlabelled and annotated.unlabelled != "background" else crowds:
        unknown |= labels == label  # few labels: faster than np.isin
    return unknown


def make_sample(
    annotated: Annotated,
    task: str,
    index: int,
    *,
    seed: int,
    options: TaskOptions,
    vocabulary: Sequence[str],
    augment: bool,
) -> TaskSample:
    """One sample of one task (spec, section 5).

    Args:
        annotated: the picture.
        task: one of ``TASKS``.
        index: its place in the stream.
        seed: the run's seed; with ``index`` it decides every draw.
        options: sizes and shares.
        vocabulary: spoken category names for referring negatives.
        augment: random window and mirror (training) or the centre (evaluation).

    Raises:
        UnusableSample: nothing to ask for in this window.
    """
    recipe = RECIPES[task]
    draw = lambda purpose: seeded_rng(seed, index, purpose)
    height, width = annotated.labels.shape
    crop = random_crop(height, width, draw("crop")) if augment else center_crop(height, width)
    image, labels = apply_crop(annotated, crop, options.resolution_px)
    areas = np.bincount(labels.ravel(), minlength=len(annotated.entities) + 1)

    if recipe.draws:
        drawn = draw_entities(annotated, areas, options, draw("entities"))
    else:
        drawn = [e for e in annotated.entities if not e.is_crowd and areas[e.label] > 0]
        drawn = sorted(drawn, key=lambda e: -areas[e.label])
    if recipe.local:
        masks = [labels == e.label for e in drawn]
        coarse = draw_coarse_mask(masks, options, draw("coarse mask"))
    else:
        coarse = np.ones(labels.shape, bool)

    names = [speak_category(e.category) for e in drawn]
    ignored = np.zeros(labels.shape, bool)
    if recipe.given == "image":  # the colormap is to be found, so its truth must be known
        ignored = unknown_pixels(annotated, labels, unlabelled=not recipe.draws)
    if task == "referring":
        inside = np.unique(labels[coarse])
        present = {speak_category(e.category) for e in annotated.entities if e.label in inside}
        drawn, names = split_negatives(
            drawn, present, vocabulary, options.negative_probability, draw("negatives")
        )
    room = options.palette_cells**2
    for spare in drawn[room:]:  # more than the palette holds: unknown, not background
        ignored |= labels == spare.label
    drawn = drawn[:room]
    if not recipe.draws and not drawn:
        raise UnusableSample(
            f"expected an entity, found none in {annotated.source}/{annotated.key}"
        )

    silent = draw("text dropout").random() < options.text_dropout
    return TaskSample(
        key=f"{annotated.source}/{annotated.key}",
        index=index,
        task=task,
        image=image,
        labels=relabel(labels, drawn),
        ignored=ignored,
        coarse_mask=coarse,
        prompt="" if silent else write_prompt(task, names),
        names=tuple(speak_category(e.category) for e in drawn),
    )


assert tuple(RECIPES) == TASKS, "the order of RECIPES is the task embedding's order"
