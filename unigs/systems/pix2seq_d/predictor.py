"""Pix2Seq-D behind ``Predictor``: a batch of pictures -> entities with classes, and its folder.

Also a clip, frame by frame (``ClipPredictor``): the bits of the frames before stand beside the
noisy ones, so that an entity keeps its id (Section 3, video).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unigs.codec.analog_bits import BitCode, decode_bits
from unigs.codec.panoptic_ids import Panoptic, decode_panoptic
from unigs.noise import draw_noise
from unigs.pictures import colour_labels
from unigs.records import Batch, Prediction, UnigsError
from unigs.systems.backbone import Backbone
from unigs.systems.clips import ClipState, Tracked
from unigs.systems.folders import load_model, save_model
from unigs.systems.pix2seq_d.diffusion import BitSampling, sample_bits
from unigs.systems.pix2seq_d.network import BitDenoiser, Network, find_grid
from unigs.systems.pix2seq_d.objective import LossKind, count_outputs, encode_past, read_clean
from unigs.systems.pixels import resize_labels
from unigs.systems.predictor import name_task
from unigs.systems.sampling import Sampling
from unigs.tasks.classes import ClassTable, number_labels
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
        image = self._send(batch.image)
        bits = self.generate(image, batch.index.tolist())
        classes, ids, certain = read_maps(bits, image.shape[-2:], self.trained)
        found = decode_panoptic(classes, ids, self._sampling.least_px)
        return show_entities(found, certain, image, self.trained.classes)

    @property
    def past_frames(self) -> int:
        return self.trained.network.told.past

    @torch.no_grad()
    def follow(self, image: Tensor, state: ClipState) -> Tracked:
        """The next frame of a clip; see ``ClipPredictor``.

        Raises:
            UnigsError: a frame of another size than those before.
        """
        image = self._send(image)
        grid = find_grid((image.shape[-2], image.shape[-1]), self.multiple_px)
        bits = self.generate(image, [state.frame], state.maps)
        classes, ids, certain = read_maps(bits, image.shape[-2:], self.trained)
        (found,) = decode_panoptic(classes, ids, self._sampling.least_px)
        kept = restore_ids(found, ids[0])
        painted = torch.tensor([0, *kept.classes])[kept.labels.cpu().long()]
        maps = resize_labels(torch.stack((painted, kept.labels.cpu().long())), grid)[None]
        before = maps if state.maps is None else torch.cat((maps, state.maps))
        carried = ClipState(state.frame + 1, before[: max(1, self.past_frames)])
        return Tracked(show_entities([kept], certain, image, self.trained.classes), carried)

    def recall(
        self, frame: int, labels: Sequence[Tensor], names: Sequence[str], size: Sequence[int]
    ) -> ClipState:
        """The state of known maps; see ``ClipPredictor``. Labels of no id are void."""
        if not labels:
            return ClipState(frame)
        grid = find_grid((size[0], size[1]), self.multiple_px)
        ids = torch.cat([resize_labels(one[None].cpu().long(), grid) for one in labels])
        classes = (number_labels(names, self.trained.classes) + 1).clamp(min=0)[ids]
        classes[ids > self.trained.most_ids] = 0
        return ClipState(frame, torch.stack((classes, ids * (classes > 0)), 1))

    def _send(self, image: Tensor) -> Tensor:
        return image.to(next(self.trained.network.parameters()).device)

    def generate(self, image: Tensor, indices: list[int], maps: Tensor | None = None) -> Tensor:
        """Bits float32 [B, C, h, w]; the picture is looked at once.

        Args:
            image: uint8 [B, 3, H, W].
            indices: which noise.
            maps: of the frames before, as ``ClipState`` has them, of one frame; None: of pictures.
        """
        trained, sampling = self.trained, self._sampling
        past = None
        if maps is not None and self.past_frames:
            past = self._look_back(image, maps)
            sampling = replace(sampling, steps=sampling.later_steps)
        features, tokens = trained.network.encode(image, past)
        shape = (trained.code.channels, *features.shape[-2:])
        noise = draw_noise(sampling.seed, indices, shape, "sampled bits").to(image.device)

        def predict(noisy: Tensor, gamma: Tensor) -> Tensor:
            output = trained.network.denoise(noisy, gamma, features, tokens)
            return read_clean(trained.loss, output, noisy, gamma, trained.code)

        return sample_bits(predict, noise, trained.code.scale, sampling)

    def _look_back(self, image: Tensor, maps: Tensor) -> Tensor:
        """Bits of the frames before, [1, past, C, h, w]; those that there are not yet are low."""
        grid = find_grid((image.shape[-2], image.shape[-1]), self.multiple_px)
        if tuple(maps.shape[-2:]) != grid:
            raise UnigsError(
                f"expected a frame of the size of those before, on a grid of {maps.shape[-2]} x "
                f"{maps.shape[-1]} cells, got {grid[0]} x {grid[1]}, in {self.name}"
            )
        known = maps.new_zeros(1, self.past_frames, 2, *grid)
        known[0, : len(maps)] = maps[: self.past_frames]
        return encode_past(known, self.trained.code).to(image.device)

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


def read_maps(bits: Tensor, size: Sequence[int], trained: Trained) -> tuple[Tensor, Tensor, Tensor]:
    """Bits -> classes and ids, int64 [B, H, W], and how certain they are, float32 [B, H, W].

    Certain is the probability of what was read, each bit taken for itself: the product of
    (1 + |bit| / scale) / 2.

    Args:
        bits: float32 [B, C, h, w] in -scale..scale.
        size: H, W of the picture.
        trained: code and classes.
    """
    code = trained.code
    limits = {"most_class": len(trained.classes), "most_id": trained.most_ids}
    maps = (*decode_bits(bits, code, **limits), ((1 + bits.abs() / code.scale) / 2).prod(1))
    classes, ids, certain = (resize_labels(one, size) for one in maps)
    return classes, ids, certain


def restore_ids(found: Panoptic, ids: Tensor) -> Panoptic:
    """Entities under their own ids; the class of an id that no entity has is 0.

    Args:
        found: with labels 1..N.
        ids: int64 [H, W], of which they were made.
    """
    table = ids.new_zeros(len(found.classes) + 1)
    table[found.labels.flatten().long()] = ids.flatten()
    table[0] = 0
    classes = [0] * int(table.max())
    for number, known in zip(table[1:].tolist(), found.classes, strict=True):
        classes[number - 1] = known
    return Panoptic(table[found.labels.long()].int(), classes)


def show_entities(
    found: Sequence[Panoptic], certain: Tensor, image: Tensor, table: ClassTable
) -> Prediction:
    """Entities as a prediction; a score is the mean of how certain the entity's pixels are."""
    labels = torch.stack([one.labels for one in found])
    shown = torch.from_numpy(np.stack([colour_labels(one) for one in labels.cpu().numpy()]))
    return Prediction(
        image=image,
        colormap=shown.to(labels.device),
        labels=labels,
        scores=[average_over(one.labels, sure) for one, sure in zip(found, certain)],
        names=[[table.names[n - 1] if n else "" for n in one.classes] for one in found],
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
