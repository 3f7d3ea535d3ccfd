"""GSS behind ``Predictor``: classes -> named entities; and its folder.

In: batches of entity segmentation. Out: ``Prediction`` s whose masks are the connected regions of
a thing's class and the whole area of a stuff class.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from unigs.codec.regions import label_regions
from unigs.records import Batch, Prediction, UnigsError
from unigs.systems.backbone import Backbone, Encoder
from unigs.systems.folders import load_model, save_model
from unigs.systems.gss.coder import build_coder, describe_coder
from unigs.systems.gss.prior import MaskigePrior, Prior
from unigs.systems.gss.stages import Seen, Stages
from unigs.systems.predictor import name_task
from unigs.systems.sampling import Sampling
from unigs.tasks import ClassTable
from unigs.weights import in_words, locate_shipped

FOLDER = "GSSPredictor"


@dataclass(frozen=True)
class Settings:
    """What a model remembers beside weights and colours.

    Attributes:
        side_px: of the pictures it was trained on.
        least_area: of the picture, in 0..1: smaller areas are no entities, as those that a blurred
            border between two colours looks like.
    """

    side_px: int
    least_area: float


class GSSPredictor:
    """The trained stages.

    Args:
        stages: on their device.
        settings: which areas count, and for which size.
        name: for tables.
        sampling: must ask for nothing: there is nothing to sample.

    Raises:
        UnigsError: something is asked for.
    """

    tasks = ("entity",)
    decoders = ("nearest",)

    def __init__(
        self,
        stages: Stages,
        settings: Settings,
        name: str = "GSS",
        sampling: Sampling | None = None,
    ) -> None:
        if asked := (sampling or Sampling()).list_given():
            raise UnigsError(
                f"expected nothing of sampling, as GSS does not sample, got {', '.join(asked)}, "
                "at sampling"
            )
        self.stages, self.settings, self.name = stages, settings, name

    @property
    def side_px(self) -> int:
        return self.settings.side_px

    @property
    def multiple_px(self) -> int:
        return self.stages.prior.told.stride

    @property
    def options(self) -> dict[str, Any]:
        """What predictions depend on beside weights."""
        return {"least_area": self.settings.least_area, **self.stages.painting.to_json()}

    def __call__(self, batch: Batch) -> Prediction:
        """Predict a batch of entity segmentation.

        Raises:
            UnigsError: of another task, or of sides that the grid of codes does not divide.
        """
        if (task := name_task(batch)) not in self.tasks:
            raise UnigsError(f"expected a batch of entity, got {task}, at GSS")
        device = next(self.stages.parameters()).device
        image = batch.image.to(device)
        table = self.stages.painting.table
        return name_regions(image, self.stages(image), table, self.settings.least_area)

    def decode_again(self, batch: Batch, prediction: Prediction, decoder: str) -> Prediction:
        """The same prediction: there is one decoder.

        Raises:
            UnigsError: another decoder.
        """
        if decoder not in self.decoders:
            raise UnigsError(
                f"expected a decoder of {', '.join(self.decoders)}, got {decoder!r}, at GSS"
            )
        return prediction

    def save(self, folder: str, half: bool = False) -> None:
        """Write a folder that ``load_predictor`` reads, the posterior inside; no auxiliary head.

        Args:
            folder: an older one there is replaced at once or not at all.
            half: store weights in half precision.

        Raises:
            UnigsError: other files lie there, or weights are not finite, at half precision perhaps.
        """
        weights = {
            name: weight
            for name, weight in self.stages.state_dict().items()
            if not name.startswith("prior.auxiliary.")
        }
        settings = {**asdict(self.settings), **describe_stages(self.stages)}
        save_model(Path(folder), FOLDER, settings, weights, half)


def describe_stages(stages: Stages) -> dict[str, Any]:
    """Plain values by which :func:`build_stages` makes the same networks."""
    encoder = stages.prior.encoder
    return {
        "prior": asdict(stages.prior.told),
        "backbone": asdict(encoder.told),
        "config": encoder.describe(),
        **describe_coder(stages),
    }


def build_stages(settings: dict[str, Any], where: str) -> Stages:
    """Networks of random weights by :func:`describe_stages`, without the auxiliary head."""
    coder = build_coder(settings, where)
    encoder = Encoder(Backbone(**settings["backbone"]), config=settings["config"])
    prior = MaskigePrior(Prior(**settings["prior"]), encoder, coder.posterior.size, None)
    return Stages(prior, coder)


def load_stages(folder: str) -> tuple[Stages, Settings]:
    """The stages of a folder, float32, in evaluation mode, and what it remembers beside them.

    Args:
        folder: local, or ``gss``, which ships.

    Raises:
        UnigsError: no folder of GSS, or a damaged one.
    """
    stored, weights = load_model(locate_shipped(folder), FOLDER)
    with in_words("the settings and weights of GSS", folder):
        stages = build_stages(stored, folder)
        stages.load_state_dict(weights)
        settings = Settings(int(stored["side_px"]), float(stored["least_area"]))
        return stages.float().eval(), settings


def load_gss(
    folder: str, name: str, device: str = "cpu", sampling: Sampling | None = None
) -> GSSPredictor:
    """The predictor of a folder, on a device.

    Raises:
        UnigsError: no folder of GSS, or a damaged one; something is asked of sampling.
    """
    stages, settings = load_stages(folder)
    return GSSPredictor(stages.to(device), settings, name, sampling)


def name_regions(
    image: torch.Tensor, seen: Seen, table: ClassTable, least_area: float
) -> Prediction:
    """Classes as entities, largest first.

    Args:
        image: uint8 [B, 3, H, W].
        seen: of it.
        table: K classes; class K is background, label 0.
        least_area: see :class:`Settings`.
    """
    segment = split_things(seen.classes, table)
    labels, scores, names = [], [], []
    for segments, classes, sure in zip(segment, seen.classes, seen.sure):
        ids, place = segments.unique(return_inverse=True)  # [S], [H, W]
        area = torch.bincount(place.flatten(), minlength=len(ids))
        chance = torch.bincount(place.flatten(), sure.flatten().double(), len(ids)) / area
        of_class = area.new_empty(len(ids)).scatter_(0, place.flatten(), classes.flatten())
        big = (of_class < len(table)) & (area >= least_area * place.numel())
        order = [i for i in area.argsort(descending=True, stable=True).tolist() if big[i]]
        number = area.new_zeros(len(ids))
        number[order] = torch.arange(1, len(order) + 1, device=area.device)
        labels.append(number[place].int())
        scores.append(chance[order].clamp(0, 1).tolist())
        names.append([table.names[i] for i in of_class[order].tolist()])
    return Prediction(image, seen.maskige, torch.stack(labels), scores, names)


def split_things(classes: torch.Tensor, table: ClassTable) -> torch.Tensor:
    """A number for each segment of a picture: regions of things, areas of stuff and background.

    Args:
        classes: int64 [B, H, W] in 0..K.
        table: K classes.

    Returns:
        int64 [B, H, W]; in 0..K where there is one segment a class, else more.
    """
    is_thing = torch.tensor([*table.things, False], device=classes.device)[classes]
    region = label_regions(classes.masked_fill(~is_thing, -1))
    return torch.where(is_thing, region + len(table) + 1, classes)
