"""How to sample, in one record that callback, pipeline, evaluation and command line share.

A field that is None is left to the next who knows: the model's folder (which remembers how the
model is best used, by task), then the task's row, then ``HOUSE``. So a user types nothing, and who
types something changes that alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from unigs.records import TASKS, Decoder, UnigsError, suggest
from unigs.tasks import RECIPES

Solver = Literal["ddim", "unipc"]
GivenStream = Literal["denoise", "clamp"]

ALL = "all"
"""The key of what holds for every task, in what a model remembers."""


@dataclass(frozen=True)  # no slots: the command line reads its fields
class Sampling:
    """How to sample; what is None is as the model's folder says, or its task, or ``HOUSE``.

    Args:
        num_inference_steps: sampling steps (paper: 200); with ``ddim`` a divisor of the training
            steps.
        solver: ``unipc`` for few steps, ``ddim`` for the paper's.
        guidance_scale: classifier-free guidance of the picture by the words; 1 is off.
        entity_guidance_scale: the same by the entities to synthesise, away from a picture with
            none; synthesis only.
        colormap_guidance_scale: of the colormap by the words; above 1 it shifts the colours.
        given_stream: a stream that equals the context is denoised like the other (paper), or
            clamped to its re-noised truth.
        guided_filter: decode the colormap with the outlines of the picture, where that is given;
            for pictures of flat colours, see ``codec.guided_filter``.
        decoder: ``refined`` knows the palette; ``dichotomy`` is the paper's.
        ensemble_size: colormaps of this many noises are averaged where the picture is given, so
            that a mask depends less on the noise (test-time ensembling of Ke et al. 2024, for
            depth); best at few steps, where all noises lead to the same colours.
        processing_resolution: short side at which the model runs, pixels; None: the input's own.
        seed: with a sample's index it decides the noise.
    """

    num_inference_steps: int | None = None
    solver: Solver | None = None
    guidance_scale: float | None = None
    entity_guidance_scale: float | None = None
    colormap_guidance_scale: float | None = None
    given_stream: GivenStream | None = None
    guided_filter: bool | None = None
    decoder: Decoder | None = None
    ensemble_size: int | None = None
    processing_resolution: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            whole = type(value) is int or (type(value) is float and least is None)
            fits = whole and (abs(value) <= LARGEST if least is None else value >= least)
            if value is not None and not fits:
                told = "a finite number" if least is None else f"a whole number of {least} or more"
                raise UnigsError(f"expected {told}, got {value!r}, at sampling.{name}")
        if not isinstance(self.guided_filter, bool | None):
            raise UnigsError(
                f"expected true or false, got {self.guided_filter!r}, at sampling.guided_filter"
            )
        for name, kinds in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in kinds:
                told = ", ".join(map(str, kinds))
                raise UnigsError(f"expected one of {told}, got {value!r}, at sampling.{name}")

    def count_noises(self, task: str) -> int:
        """Colormaps that are averaged: one where the picture is drawn too."""
        return 1 if RECIPES[task].draws_picture else self.ensemble_size or 1

    def count_steps(self, task: str) -> int:
        """Steps of all noises, of a resolved record."""
        return self.count_noises(task) * (self.num_inference_steps or 0)

    def over(self, other: Sampling) -> Sampling:
        """This one, and what it leaves open as ``other`` says."""
        mine, theirs = asdict(self), asdict(other)
        return Sampling(**{k: theirs[k] if v is None else v for k, v in mine.items()})

    def list_given(self) -> dict[str, Any]:
        """The fields that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


OPTIONS = tuple(field.name for field in fields(Sampling))

LARGEST = 3.4e38
"""Larger numbers are infinite in float32; NaN is not smaller either."""

LEAST: dict[str, int | None] = {
    "num_inference_steps": 1,
    "ensemble_size": 1,
    "processing_resolution": 1,
    "seed": 0,
    "guidance_scale": None,
    "entity_guidance_scale": None,
    "colormap_guidance_scale": None,
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "solver": get_args(Solver),
    "given_stream": get_args(GivenStream),
    "decoder": get_args(Decoder),
}

HOUSE = Sampling(
    num_inference_steps=20,
    solver="unipc",
    entity_guidance_scale=1.0,
    colormap_guidance_scale=1.0,
    given_stream="denoise",
    guided_filter=False,
    decoder="refined",
    ensemble_size=1,
    seed=0,
)
"""What holds where neither user nor model nor task say anything."""


def resolve_sampling(
    task: str, asked: Sampling | None = None, remembered: Mapping[str, Sampling] | None = None
) -> Sampling:
    """How a task is sampled: as asked, else as the model remembers, its task says, or ``HOUSE``.

    Args:
        task: one of ``TASKS``.
        asked: by the user.
        remembered: by the model's folder, by task and under ``ALL``.

    Returns:
        A record in which only ``processing_resolution`` may be None.
    """
    recipe, own = RECIPES[task], remembered or {}
    by_task = Sampling(guidance_scale=recipe.guidance, entity_guidance_scale=recipe.entity_guidance)
    resolved = asked or Sampling()
    for lower in (own.get(task), own.get(ALL), by_task, HOUSE):
        resolved = resolved if lower is None else resolved.over(lower)
    return resolved


def read_remembered(stored: Any, where: Any) -> dict[str, Sampling]:
    """What a folder or a config says of sampling, by task, checked.

    Args:
        stored: mapping of a task, or ``ALL``, to fields of ``Sampling``.
        where: for the message.

    Raises:
        UnigsError: an unknown task or field, or a value of a wrong type.
    """
    if not isinstance(stored, Mapping):
        raise UnigsError(f"expected sampling by task, got {stored!r}, at {where}")
    known = set(OPTIONS)
    read = {}
    for task, options in stored.items():
        if task not in (ALL, *TASKS):
            raise UnigsError(
                f"expected a task of {', '.join(TASKS)} or {ALL}, got {task!r}, at {where}"
            )
        if isinstance(options, Sampling):
            read[task] = options
            continue
        if not isinstance(options, Mapping) or not options.keys() <= known:
            raise UnigsError(f"expected fields of {sorted(known)}, got {options!r}, at {where}")
        try:
            read[task] = Sampling(**options)
        except UnigsError as error:
            raise UnigsError(f"{error}, of {where}") from error
    return read


def read_options(options: dict[str, Any]) -> Sampling:
    """``Sampling`` of a call's further options.

    Raises:
        UnigsError: an unknown one, with the nearest that is known, or a value of a wrong type.
    """
    for name in options.keys() - set(OPTIONS):
        hint = suggest(name, OPTIONS)
        raise UnigsError(f"expected options of {', '.join(OPTIONS)}, got {name!r}{hint}")
    return Sampling(**options)
