"""``unigs evaluate``: the paper's tables for one or more models.

No torch before names, models' folders and shards are checked: help and errors come at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unigs.evaluation.options import JudgeFiles, Scenes
from unigs.evaluation.peers import PEERS, check_peer
from unigs.records import UnigsError, suggest
from unigs.shards.manifest import list_folders
from unigs.systems.sampling import HOUSE, Sampling
from unigs.verbs.model import locate_model
from unigs.weights import SHIPPED, locate_shipped

NAMELESS = ("pipeline", "model")
"""Folders that many runs have, so that their names tell no model from another."""

SIMPLE = ("oracle", "floor-empty", "floor-random")
"""Models that are made of nothing."""

KINDS = ("oracle-vae", *PEERS)
"""Models that are made of what stands behind their name and an equals sign."""


def evaluate_models(
    models: list[str],
    shards: list[str],
    out: str,
    scenes: Scenes = Scenes(),  # noqa: B008 (frozen)
    sampling: Sampling = Sampling(),  # noqa: B008
    judges: JudgeFiles = JudgeFiles(),  # noqa: B008
    protocol: str | None = None,
    cache: str | None = None,
) -> None:
    """Print and write the paper's tables for one or more models.

    Args:
        models: pipeline folders; ``oracle``, ``oracle-vae=PIPELINE`` (ceilings), ``floor-empty``,
            ``floor-random``; other people's models by folder or id of the hub:
            ``sd-inpainting=FOLDER`` (inpainting), ``controlnet=BASE+CONTROLNET``,
            ``controlnet-coco=BASE+CONTROLNET``, ``t2i-adapter=BASE+ADAPTER`` (synthesis),
            ``sam=FOLDER`` (entity), ``mask2former=FOLDER``, ``oneformer=FOLDER`` (referring,
            entity; ``-semantic`` behind the name reads them pixel by pixel), ``segmenter=FOLDER``
            (any that can judge, the benchmark's too).
        shards: folders that ``unigs shards`` wrote.
        out: folder; results of each model in a folder of its name, and one report over all.
        scenes: which pictures, and what is asked of them.
        sampling: what to do in another way than each model remembers; the paper's way is
            ``--sampling.num_inference_steps 200 --sampling.solver ddim``. Another decoder than a
            model's own is told in its name.
        judges: weights of the networks that judge pictures; figures without one are named.
        protocol: ``protocol.json`` of an earlier evaluation, to insist on the same inputs.
        cache: folder of the real pictures' FID statistics.
    """
    check_names(models)
    check_folders(models, shards, scenes.tasks)
    from unigs.verbs.scoring import score_models  # torch, from here on

    print(score_models(models, shards, Path(out), scenes, sampling, judges, protocol, cache))


def split_model(model: str) -> tuple[str, str]:
    """The kind of a model of the command line and what it is made of; the kind of a folder is "".

    Raises:
        UnigsError: a kind that there is none of.
    """
    kind, equals, source = model.partition("=")
    if kind in (SIMPLE if not equals else KINDS):
        return kind, source
    if equals and not Path(model).exists():
        raise UnigsError(
            f"expected a folder, or one of {', '.join(KINDS)} before the equals sign, got {model}, "
            f"in --models{suggest(kind, KINDS)}"
        )
    return "", model


def name_model(model: str, sampling: Sampling = Sampling()) -> str:  # noqa: B008
    """What a model of the command line is called in tables and folders.

    Its folder's name; of one whose name says only that it is a model, that of the run around it;
    of one that ships, the name that it is called by; of all others their kind.
    """
    kind, source = split_model(model)
    folder = Path(source).resolve()
    name = folder.parent.name if folder.name in NAMELESS else folder.name
    shipped = (known for known in SHIPPED if locate_shipped(known).resolve() == folder)
    name = kind or next(shipped, name)
    decoded = kind not in PEERS and not kind.startswith("floor")
    other = sampling.decoder if sampling.decoder != HOUSE.decoder else None
    return f"{name}-{other}" if other and decoded else name


def check_names(models: Sequence[str]) -> None:
    """Refuse two models of one name, before the first is scored.

    Raises:
        UnigsError: with both.
    """
    names = [name_model(model) for model in models]
    for name in names:
        if names.count(name) > 1:
            twins = [model for model in models if name_model(model) == name]
            raise UnigsError(
                f"expected models of different names, got {' and '.join(twins)}, both called "
                f"{name!r}, in --models; rename a folder, or evaluate them into different --out"
            )


def check_folders(models: Sequence[str], shards: Sequence[str], tasks: Sequence[str]) -> None:
    """Refuse models and shards that are not there, and peers that can do none of the tasks.

    Raises:
        UnigsError: with the folder; what comes from a hub is looked at when it is loaded.
    """
    for model in models:
        kind, source = split_model(model)
        if kind in PEERS:
            check_peer(kind, source, tasks)
        elif kind not in SIMPLE:
            locate_model(Path(source), "--models")
    for root in shards:
        list_folders(root)
