"""Pix2Seq-D as a ``System``: noise on the bits of a label map, and their cross-entropy.

The classes come with the data, and stay the model's: data of other classes are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from unigs.codec.analog_bits import BitCode
from unigs.records import Batch, UnigsError
from unigs.runs import Rule
from unigs.systems.pix2seq_d.diffusion import BitSampling
from unigs.systems.pix2seq_d.network import BitDenoiser, Network, find_grid, widen_past
from unigs.systems.pix2seq_d.objective import Objective, count_outputs, measure_losses
from unigs.systems.pix2seq_d.predictor import BitPredictor, Trained, read_folder, read_network
from unigs.systems.sampling import Sampling
from unigs.systems.system import Optimizer, System
from unigs.tasks.classes import ClassTable, list_classes
from unigs.weights import in_words, locate_shipped


class Pix2SeqD(System):
    """A generalist for panoptic segmentation (Chen et al., arXiv 2210.06366).

    Args:
        code: bits of class and id, and their scale.
        network: how large it is.
        objective: what it is asked for, and how its errors weigh.
        optimizer: rate, warm-up and decay.
        sampling: how the trained model is best used; it travels with the exported folder.
        unconditional: pre-train the decoder alone, without the picture.
        start_from: folder that ``unigs export`` wrote of an earlier stage, or the name of a model
            that ships, whose weights this one begins with; None: at random, and the backbone as
            it says. A stage that looks back may begin with one of pictures and of other classes.

    Raises:
        UnigsError: ids by place, which change from frame to frame, with frames to look back at.
    """

    NETWORK = "denoiser"
    ENTRIES = ("encode", "denoise")
    ON_RESUME: ClassVar[dict[str, Rule]] = {
        **System.ON_RESUME,
        "model.start_from": "taken",  # a checkpoint's weights come after it
        "model.network.backbone.source": "warned",
    }
    loss_weights: Mapping[str, float] = {"bits": 1.0}

    def __init__(
        self,
        code: BitCode = BitCode(),  # noqa: B008
        network: Network = Network(),  # noqa: B008
        objective: Objective = Objective(),  # noqa: B008
        optimizer: Optimizer = Optimizer(),  # noqa: B008
        sampling: BitSampling = BitSampling(),  # noqa: B008
        unconditional: bool = False,
        start_from: str | None = None,
    ) -> None:
        super().__init__()
        if network.past and objective.ids == "place":
            raise UnigsError(
                "expected ids that stay over the frames (random, shuffle), got place, at "
                "model.objective.ids with model.network.past"
            )
        self.code, self.told, self.objective = code, network, objective
        self.optimizer, self.sampling = optimizer, sampling
        self.unconditional, self.start_from = unconditional, start_from
        self.keep_options(
            code=code, network=network, objective=objective, optimizer=optimizer,
            sampling=sampling, unconditional=unconditional, start_from=start_from,
        )  # fmt: skip
        self.most_ids = objective.limit_ids(code)
        self.classes: ClassTable | None = None
        self.side_px: int | None = None
        self.denoiser: Any = None
        self._download = True

    @classmethod
    def rebuild(cls, stored: Mapping[str, Any], base: str | None, where: Path) -> Pix2SeqD:
        """A new module by the hyperparameters in a checkpoint; ``base`` is its backbone."""
        kinds = {"code": BitCode, "objective": Objective, "sampling": BitSampling}
        with in_words("the options of Pix2SeqD", where):
            told = read_network(stored["network"])
            if base is not None:
                told = replace(told, backbone=replace(told.backbone, source=base))
            model = cls(
                network=told,
                optimizer=Optimizer(**stored["optimizer"]),
                unconditional=stored["unconditional"],
                **{name: kind(**stored[name]) for name, kind in kinds.items()},
            )
            model.take_data(ClassTable.from_json(stored["classes"], str(where)), stored["side_px"])
        model._download = False
        return model

    @property
    def max_painted(self) -> int:
        return self.most_ids

    def describe(self) -> str:
        return f"{self.code} and {self.told}"

    def setup(self, stage: str) -> None:
        """Take the classes of the data; see :meth:`take_data`."""
        super().setup(stage)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage != "fit" and self.classes is not None:
            return  # what is evaluated may be of other classes; names say which
        split = data.train_split if stage == "fit" else data.validation.split
        manifests, _ = data.select_sources(split)
        self.take_data(list_classes(manifests), data.tasks.resolution_px, f"{', '.join(manifests)}")

    def take_data(self, table: ClassTable, side_px: int, where: str = "the data") -> None:
        """Know the classes and the size of pictures, which checkpoints and folders keep.

        Raises:
            UnigsError: the model has other classes already, or its bits do not hold so many.
        """
        if self.classes is not None:
            self.classes.refuse_other(table, where)
        if len(table) > self.code.most_class:
            raise UnigsError(
                f"expected at most {self.code.most_class} classes, as model.code.class_bits "
                f"{self.code.class_bits} hold besides void, got {len(table)}, in {where}"
            )
        self.classes, self.side_px = table, side_px
        self.hparams.update(classes=table.to_json(), side_px=side_px)

    def configure_model(self) -> None:
        """Build the network, and begin with the weights of an earlier stage, if there is one."""
        if self.denoiser is not None:
            return
        outputs = count_outputs(self.objective.loss, self.code)
        self.denoiser = BitDenoiser(
            self.told, self.code, outputs, self.unconditional, self._download
        )
        if self.start_from is not None:
            self._begin_with(locate_shipped(self.start_from))

    def _begin_with(self, folder: Path) -> None:
        """Take the weights of an earlier stage.

        Raises:
            UnigsError: it is of another code, size, loss or classes, or looks further back.
        """
        earlier, _ = read_folder(folder)
        pairs = {
            "model.code": (asdict(self.code), asdict(earlier.code)),
            "model.network": (_list_sizes(self.told), _list_sizes(earlier.network.told)),
            "model.objective.loss": (self.objective.loss, earlier.loss),
        }
        for name, (mine, theirs) in pairs.items():
            if mine != theirs:
                raise UnigsError(f"expected {mine}, got {theirs}, at {name} of {folder}")
        looks_back = earlier.network.told.past
        if looks_back > self.told.past:
            raise UnigsError(
                f"expected a model that looks back at {self.told.past} frames or fewer, got "
                f"{looks_back}, at model.network.past of {folder}"
            )
        if self.classes is not None and looks_back == self.told.past:
            self.classes.refuse_other(earlier.classes, str(folder))
        self.denoiser.load_state_dict(widen_past(earlier.network.state_dict(), self.denoiser))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As of every system; a fit refuses other classes, all else takes the checkpoint's.

        Raises:
            UnigsError: another model, or other classes.
        """
        super().on_load_checkpoint(checkpoint)
        stored = checkpoint["hyper_parameters"]
        table = ClassTable.from_json(stored.get("classes"), "the checkpoint")
        if self._trainer is not None and self.trainer.state.fn != "fit":
            self.classes = None
        self.take_data(table, stored["side_px"], "the checkpoint")

    def shape_noise(self, side_px: int) -> tuple[int, ...]:
        return self.code.channels, *find_grid((side_px, side_px), self.told.divisor)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The error of the bits, float32 [B]."""
        parts = (self.objective, self.denoiser, self.code, self._know_classes())
        return {"bits": measure_losses(*parts, batch)}

    def make_predictor(self, sampling: Sampling | None = None) -> BitPredictor:
        table = self._know_classes()
        assert self.side_px is not None
        known = (self.code, self.objective.loss, self.most_ids, table, self.side_px)
        return BitPredictor(Trained(self.denoiser, *known), self.sampling.change(sampling))

    def _know_classes(self) -> ClassTable:
        if self.classes is None:
            raise UnigsError(
                "expected classes from data or from a checkpoint, got none yet, in Pix2SeqD"
            )
        return self.classes


def _list_sizes(told: Network) -> dict[str, Any]:
    """The sizes of a network, wherever its backbone came from; weights of both must fit."""
    return {**asdict(told), "backbone": None, "past": None}
