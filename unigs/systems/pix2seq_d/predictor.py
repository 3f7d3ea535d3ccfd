"""Pix2Seq-D behind ``Predictor``: a batch of pictures -> entities with classes, and its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unigs.codec.analog_bits import BitCode, decode_bits
from unigs.codec.panoptic_ids import decode_panoptic
from unigs.pictures import colour_labels
from unigs.records import Batch, Prediction, UnigsError
from unigs.systems.backbone import Backbone
from unigs.systems.folders import load_model, save_model
from unigs.systems.noise import draw_noise
from unigs.systems.pix2seq_d.diffusion import BitSampling, sample_bits
from unigs.systems.pix2seq_d.network import BitDenoiser, Network
from unigs.systems.pix2seq_d.objective import LossKind, count_outputs, read_clean
from unigs.systems.pixels import resize_labels
from unigs.systems.predictor import name_task
from unigs.systems.sampling import Sampling
from unigs.tasks.classes import ClassTable
from unigs.weights import check_names, in_words

KIND = "Pix2SeqDPredictor"
"""What a folder's index names."""


@dataclass(frozen=True, slots=True)
class Trained:
    """All that a prediction needs but how to sample.

    Attributes:
        network: on its device.
        code: of its bits.
        loss: by which it was trained, and so what its answers are.
        most_ids: the largest id in use.
        classes: of the data it was trained on.
        side_px: of the pictures it was trained on.
    """

    network: BitDenoiser
    code: BitCode
    loss: LossKind
    most_ids: int
    classes: ClassTable
    side_px: int


class BitPredictor:
    """A trained network that finds entities and names them.

    Args:
        trained: the network and what it must be known by.
        sampling: how to sample.
        name: for tables.
    """

    tasks = ("entity",)
    decoders = ("bits",)

    def __init__(self, trained: Trained, sampling: BitSampling, name: str = "Pix2SeqD") -> None:
        self.trained, self.name = trained, name
        self._sampling = sampling

    @property
    def options(self) -> dict[str, Any]:
        return {"entity": asdict(self._sampling)}

    @property
    def side_px(self) -> int:
        return self.trained.side_px

    @property
    def multiple_px(self) -> int:
        return self.trained.network.told.divisor

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Prediction:
        """Sample, decode and score.

        Raises:
            UnigsError: another task than entity segmentation.
        """
        if name_task(batch) != "entity":
            raise UnigsError(f"expected the task entity, got {name_task(batch)}, in {self.name}")
        image = batch.image.to(next(self.trained.network.parameters()).device)
        bits = self.generate(image, batch.index.tolist())
        return read_bits(bits, image, self.trained, self._sampling.least_px)

    def generate(self, image: Tensor, indices: list[int]) -> Tensor:
        """Bits float32 [B, C, h, w] of uint8 [B, 3, H, W]; the picture is looked at once."""
        trained = self.trained
        features, tokens = trained.network.encode(image)
        shape = (trained.code.channels, *features.shape[-2:])
        noise = draw_noise(self._sampling.seed, indices, shape, "sampled bits").to(image.device)

        def predict(noisy: Tensor, gamma: Tensor) -> Tensor:
            output = trained.network.denoise(noisy, gamma, features, tokens)
            return read_clean(trained.loss, output, noisy, gamma, trained.code)

        return sample_bits(predict, noise, trained.code.scale, self._sampling)

    def decode_again(self, batch: Batch, prediction: Prediction, decoder: str) -> Prediction:
        """The same prediction: bits are read in one way.

        Raises:
            UnigsError: another decoder is asked for.
        """
        if decoder not in self.decoders:
            raise UnigsError(f"expected the decoder bits, got {decoder!r}, in {self.name}")
        return prediction

    def save(self, folder: str, half: bool = False) -> None:
        """Write a folder that ``load_predictor`` reads without any other.

        Args:
            folder: an older model there is replaced at once or not at all.
            half: store weights in half precision.

        Raises:
            UnigsError: other files lie there, or weights are not finite, at half precision perhaps.
        """
        trained = self.trained
        settings = {
            "network": asdict(trained.network.told),
            "unconditional": trained.network.blind,
            "backbone": trained.network.encoder.look.describe(),
            "code": asdict(trained.code),
            "loss": trained.loss,
            "most_ids": trained.most_ids,
            "classes": trained.classes.to_json(),
            "side_px": trained.side_px,
            "sampling": asdict(self._sampling),
        }
        save_model(Path(folder), KIND, settings, trained.network.state_dict(), half)


def read_bits(bits: Tensor, image: Tensor, trained: Trained, least_px: int) -> Prediction:
    """Bits -> entities at the picture's size (Section 3, inference).

    An entity's score is the mean over its pixels of the probability of what was read, each bit
    taken for itself: the product of (1 + |bit| / scale) / 2.

    Args:
        bits: float32 [B, C, h, w] in -scale..scale.
        image: uint8 [B, 3, H, W].
        trained: code and classes.
        least_px: smaller ids are void.
    """
    code, table = trained.code, trained.classes
    limits = {"most_class": len(table), "most_id": trained.most_ids}
    maps = (*decode_bits(bits, code, **limits), ((1 + bits.abs() / code.scale) / 2).prod(1))
    classes, ids, certain = (resize_labels(one, image.shape[-2:]) for one in maps)
    found = decode_panoptic(classes, ids, least_px)
    labels = torch.stack([one.labels for one in found])
    shown = torch.from_numpy(np.stack([colour_labels(one) for one in labels.cpu().numpy()]))
    return Prediction(
        image=image,
        colormap=shown.to(labels.device),
        labels=labels,
        scores=[average_over(one.labels, sure) for one, sure in zip(found, certain)],
        names=[[table.names[number - 1] for number in one.classes] for one in found],
    )


def average_over(labels: Tensor, values: Tensor) -> list[float]:
    """Mean of float [H, W] over each label 1..N of int [H, W]."""
    flat = labels.flatten().long()
    total = flat.bincount(values.flatten().double()) / flat.bincount().clamp(min=1)
    return total[1:].clamp(0, 1).tolist()


def load_bits(
    folder: str, name: str = "Pix2SeqD", device: str = "cpu", sampling: Sampling | None = None
) -> BitPredictor:
    """The predictor of a folder that :meth:`BitPredictor.save` wrote, in single precision.

    Raises:
        UnigsError: another folder, or a damaged one.
    """
    trained, own = read_folder(Path(folder))
    trained.network.to(device)
    return BitPredictor(trained, own.change(sampling), name)


def read_folder(folder: Path) -> tuple[Trained, BitSampling]:
    """What a folder holds, on the CPU."""
    settings, weights = load_model(folder, KIND)
    with in_words("the settings of Pix2Seq-D", folder):
        code, told = BitCode(**settings["code"]), read_network(settings["network"])
        outputs = count_outputs(settings["loss"], code)
        blind = bool(settings["unconditional"])
        network = BitDenoiser(told, code, outputs, blind, config=settings["backbone"])
        sampling = BitSampling(**settings["sampling"])
    mine = network.state_dict().keys()
    check_names(mine - weights.keys(), weights.keys() - mine, folder)
    with in_words("the weights of this network", folder):
        network.load_state_dict(weights)
    table = ClassTable.from_json(settings.get("classes"), str(folder))
    known = [settings["loss"], settings["most_ids"], table, settings["side_px"]]
    return Trained(network.float().eval(), code, *known), sampling


def read_network(stored: Mapping[str, Any]) -> Network:
    """``Network`` of plain values."""
    values = {**stored, "backbone": Backbone(**stored["backbone"])}
    return Network(**{**values, "multipliers": tuple(stored["multipliers"])})
