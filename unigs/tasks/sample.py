"""One picture and a task -> one ``TaskSample`` (spec, section 5; Algorithm 1).

In: one ``Annotated`` picture and its place in the stream. Out: one ``TaskSample``, a pure function
of (picture, options, seed, index).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from unigs.records import Annotated, Entity, TaskSample, UnigsError, check_bounds
from unigs.seeds import rng as seeded_rng
from unigs.tasks.classes import NAMELESS
from unigs.tasks.coarse_masks import draw_coarse_mask
from unigs.tasks.recipes import RECIPES, speak_category, write_prompt
from unigs.transforms import Crop, apply_crop, center_crop, crop_labels, random_crop


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
        max_painted: at most this many entities are painted, the largest; the others' pixels are
            unknown. None: as many as the palette of the system that is trained can tell apart.
        unlabelled_share: pixels whose truth is hidden, drawn one by one, as an ablation of what
            fills or leaves out such pixels; none are hidden in evaluation.
        windows: of a picture, one of which each sample takes, so that ``unigs latents --windows``
            can encode them ahead; None: each sample draws a window of its own.
    """

    resolution_px: int = 512
    max_entities: int = 4
    negative_probability: float = 0.2
    arbitrary_mask_percent: float = 0.5
    extension: float = 0.4
    text_dropout: float = 0.1
    min_area: float = 1 / 1024
    max_painted: int | None = None
    unlabelled_share: float = 0.0
    windows: int | None = None

    def __post_init__(self) -> None:
        whole, share = (1, inf), (0, 1)
        check_bounds(
            self, "data.tasks", resolution_px=whole, max_entities=whole, max_painted=whole,
            windows=whole, negative_probability=share, arbitrary_mask_percent=share,
            extension=share, text_dropout=share, min_area=share, unlabelled_share=share,
        )  # fmt: skip

    def for_evaluation(self) -> TaskOptions:
        """The same with every label, without dropout, with at most 3 entities (Sec. 4)."""
        most = min(3, self.max_entities)
        return replace(self, text_dropout=0.0, unlabelled_share=0.0, max_entities=most)


class UnusableSample(UnigsError):
    """The picture has nothing this task could ask for; the stream counts it and takes another."""


def crop_window(annotated: Annotated, window: int, seed: int) -> Crop:
    """One of a picture's windows, the same for every sample that takes it."""
    purpose = f"window of {annotated.source}/{annotated.key}"
    return random_crop(annotated.height, annotated.width, seeded_rng(seed, window, purpose))


def drawable_entities(annotated: Annotated, areas: np.ndarray, options: TaskOptions):
    """Entities that can be asked for by name: single, named, and large enough in the window."""
    least = max(1.0, options.min_area * options.resolution_px**2)
    return [
        e
        for e in annotated.entities
        if not e.is_crowd and e.category not in NAMELESS and areas[e.label] >= least
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
    """Keep only ``entities``, numbered 1..N in the given order: ints [*] -> int32 [*]."""
    most = max([int(labels.max(initial=0)), *(entity.label for entity in entities)])
    table = np.zeros(most + 1, np.int32)
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


def carry_past(
    annotated: Annotated, drawn: Sequence[Entity], crop: Crop, options: TaskOptions
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """``past`` and ``gone`` of a sample, in the window and by the numbers of the sample itself.

    Args:
        annotated: a frame of a clip, or a picture, which has no past.
        drawn: the entities of the sample, numbered 1..N in this order.
        crop: the sample's window.
        options: its size, and how many can be told apart; the gone fill what room is left.
    """
    if annotated.past is None:
        return None, ()
    maps = np.stack(
        [crop_labels(labels, crop, options.resolution_px) for labels in annotated.past.labels]
    )
    here, shown = {entity.label for entity in drawn}, set(np.unique(maps).tolist())
    known = (*annotated.entities, *annotated.past.gone)
    gone = [e for e in known if e.label in shown - here and not e.is_crowd]
    if options.max_painted is not None:
        gone = gone[: max(0, options.max_painted - len(drawn))]
    return relabel(maps, [*drawn, *gone]), tuple(speak_category(e.category) for e in gone)


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
    window = None
    if not augment:
        crop = center_crop(annotated.height, annotated.width)
    elif options.windows is None:
        crop = random_crop(annotated.height, annotated.width, draw("crop"))
    else:
        window = int(draw("window").integers(options.windows))
        crop = crop_window(annotated, window, seed)
    image, labels = apply_crop(annotated, crop, options.resolution_px)
    areas = np.bincount(labels.ravel(), minlength=len(annotated.entities) + 1)

    if recipe.draws:
        drawn = draw_entities(annotated, areas, options, draw("entities"))
    else:
        drawn = [e for e in annotated.entities if not e.is_crowd and areas[e.label] > 0]
        drawn = sorted(drawn, key=lambda e: -areas[e.label])
    if recipe.local:
        masks = [labels == e.label for e in drawn]
        blobs = options.arbitrary_mask_percent
        coarse = draw_coarse_mask(masks, options.extension, blobs, draw("coarse mask"))
    else:
        coarse = np.ones(labels.shape, bool)

    asked = [speak_category(e.category) for e in drawn]
    ignored = np.zeros(labels.shape, bool)
    if not recipe.draws_picture:  # the colormap is to be found, so its truth must be known
        ignored = unknown_pixels(annotated, labels, unlabelled=not recipe.draws)
    if recipe.negatives:
        inside = np.unique(labels[coarse])
        present = {speak_category(e.category) for e in annotated.entities if e.label in inside}
        drawn, asked = split_negatives(
            drawn, present, vocabulary, options.negative_probability, draw("negatives")
        )
    room = len(drawn) if options.max_painted is None else options.max_painted
    for spare in drawn[room:]:  # more than can be painted: unknown, not background
        ignored |= labels == spare.label
    drawn = drawn[:room]
    if options.unlabelled_share:
        ignored |= draw("unlabelled").random(ignored.shape) < options.unlabelled_share
    if not (recipe.draws or drawn or annotated.past):  # a frame may be empty
        raise UnusableSample(
            f"expected an entity, found none in {annotated.source}/{annotated.key}"
        )

    past, gone = (None, ()) if recipe.draws else carry_past(annotated, drawn, crop, options)
    silent = draw("text dropout").random() < options.text_dropout
    return TaskSample(
        key=f"{annotated.source}/{annotated.key}",
        index=index,
        seed=seed,
        task=task,
        image=image,
        labels=relabel(labels, drawn),
        ignored=ignored,
        coarse_mask=coarse,
        prompt="" if silent else write_prompt(task, asked),
        asked=tuple(asked) if recipe.draws else (),
        names=tuple(speak_category(e.category) for e in drawn),
        past=past,
        gone=gone,
        window=window,
    )
