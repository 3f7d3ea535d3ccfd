"""GSS as a ``System``: the codes of a painted class map, predicted from the picture.

What a step does: number the pixels' classes, fill the unknown ones with the auxiliary head's guess,
paint, encode by the frozen posterior, and ask the prior for those codes. FT, TF and TT do so with
what ``recipes.Maskige`` learnt of painting and reading; FT-W learns to read behind a frozen stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unigs.files import hash_file
from unigs.records import Batch, UnigsError
from unigs.systems.backbone import Backbone, Encoder
from unigs.systems.gss.coder import Coder, load_coder
from unigs.systems.gss.painting import (
    Painting,
    average_known,
    choose_painting,
    fill_unknown,
    find_known,
    number_pixels,
)
from unigs.systems.gss.posterior import load_posterior
from unigs.systems.gss.predictor import GSSPredictor, Settings, load_stages
from unigs.systems.gss.prior import MaskigePrior, Prior
from unigs.systems.gss.readers import WindowReader
from unigs.systems.gss.stages import Stages
from unigs.systems.pixels import resize_labels, to_signed
from unigs.systems.sampling import Sampling
from unigs.systems.system import Optimizer, System
from unigs.tasks import UNKNOWN, ClassTable, list_classes
from unigs.weights import locate_shipped

Variant = Literal["FF", "FF-R", "FT", "TF", "TT", "FT-W"]
FREE = ("FF", "FF-R")
"""Variants that learn nothing but the prior, and so begin from a posterior and no earlier stage."""


class GSS(System):
    """Generative semantic segmentation.

    Args:
        posterior: folder of a diffusers ``VQModel``, or of DALL-E's networks, or ``vq``, the small
            one that ships; of FF and FF-R.
        variant: FF paints by colours far apart and reads the nearest; FF-R by random colours; FT
            learnt to read, TF to paint, TT both, before the prior; FT-W learns to read behind a
            frozen stage (Table 1).
        prior: the network that predicts codes; FT-W takes that of its stage.
        backbone: what looks at the picture; likewise.
        optimizer: rate, warm-up and decay.
        start_from: folder of the earlier stage: of FT, TF and TT that of ``recipes.Maskige``; of
            FT-W an exported FF.
        least_area: of the picture, in 0..1: smaller areas are no entities.

    Raises:
        UnigsError: the variant's folder is not given, or ``least_area`` is none.
    """

    NETWORK = "trained"
    ENTRIES = ("look", "predict", "guess")  # of the prior

    def __init__(
        self,
        posterior: str | None = None,
        variant: Variant = "FF",
        prior: Prior = Prior(),  # noqa: B008 (frozen)
        backbone: Backbone = Backbone(),  # noqa: B008
        optimizer: Optimizer = Optimizer(),  # noqa: B008
        start_from: str | None = None,
        least_area: float = 1 / 1024,
    ) -> None:
        super().__init__()
        needs, given = ("posterior", posterior) if variant in FREE else ("start_from", start_from)
        if given is None:
            raise UnigsError(f"expected a folder for {variant}, got none, at model.{needs}")
        if not 0 <= least_area < 1:
            raise UnigsError(f"expected a share of 0 to 1, got {least_area}, at model.least_area")
        self.folder, self.variant, self.optimizer = given, variant, optimizer
        self.told, self.backbone, self.least_area = prior, backbone, least_area
        self.keep_options(
            posterior=posterior, variant=variant, prior=prior, backbone=backbone,
            optimizer=optimizer, start_from=start_from, least_area=least_area,
        )  # fmt: skip
        self.stages: Any = None
        self.trained: Any = None
        self.painting: Painting | None = None
        self.side_px = 0
        self.download = True

    @classmethod
    def rebuild(cls, stored: Mapping[str, Any], base: str | None, where: Path) -> GSS:
        """A new module by the hyperparameters in a checkpoint; see ``System.rebuild``.

        Args:
            stored: plain values.
            base: folder of the posterior, or of the earlier stage; None: as the checkpoint says.
            where: the checkpoint.
        """
        kinds = {"prior": Prior, "backbone": Backbone, "optimizer": Optimizer}
        options = {k: kinds[k](**v) if k in kinds else v for k, v in stored.items()}
        painting, side_px = options.pop("painting", None), options.pop("side_px", 0)
        options.pop("frozen", None)  # of the folder as it was; compared when weights are loaded
        if base is not None:
            options["posterior" if options["variant"] in FREE else "start_from"] = base
        model = cls(**options)
        model.remember(Painting.from_json(painting, str(where)), side_px)
        model.download = False
        return model

    @property
    def loss_weights(self) -> Mapping[str, float]:  # type: ignore[override]
        return {"pixels": 1.0} if self.variant == "FT-W" else {"codes": 0.8, "pixels": 0.2}

    def describe(self) -> str:
        return f"GSS {self.variant} of {self.folder!r}"

    def remember(self, painting: Painting, side_px: int) -> None:
        """Keep classes, colours and the pictures' side as hyperparameters."""
        self.painting, self.side_px = painting, side_px
        self.hparams.update(painting=painting.to_json(), side_px=side_px)

    def setup(self, stage: str) -> None:
        """Take the classes of the data to train on.

        Raises:
            UnigsError: other tasks than entity segmentation, or other classes than the model's.
        """
        super().setup(stage)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        tasks = [task for task, ratio in data.task_ratios.items() if ratio]
        if tasks != ["entity"]:
            raise UnigsError(f"expected entity alone, got {', '.join(tasks)}, at data.task_ratios")
        table = list_classes(data.select_sources(data.train_split)[0])
        if self.painting is not None:
            self.painting.table.refuse_other(table, "data.shards")
            return
        self.remember(self.choose_painting(table), data.tasks.resolution_px)

    def choose_painting(self, table: ClassTable) -> Painting:
        """The variant's colours; those of an earlier stage where there is one.

        Raises:
            UnigsError: that stage knows other classes.
        """
        if self.variant in FREE:
            return choose_painting(table, "random" if self.variant == "FF-R" else "farthest")
        painting = self.read_coder().painting
        painting.table.refuse_other(table, "data.shards")
        return painting

    def configure_model(self) -> None:
        """Load the frozen parts and build what is trained; once."""
        if self.stages is not None:
            return
        if self.painting is None:
            raise UnigsError("expected the classes of data or of a checkpoint, got none, at GSS")
        self.stages = self.build_reader() if self.variant == "FT-W" else self.build_prior()
        if self.stages.painting != self.painting:
            raise UnigsError(
                f"expected the colours that this model was trained on, got others, at "
                f"{self.folder!r}"
            )
        self.trained = self.stages.trained
        self.hparams["frozen"] = hash_weights(self.folder)
        self.stages.train()  # a backbone that was loaded comes in evaluation mode

    def read_coder(self) -> Coder:
        """The first stage: of a posterior's folder, or of an earlier stage's.

        Raises:
            UnigsError: no such folder, or one of another variant.
        """
        if self.variant in FREE:
            assert self.painting is not None
            return Coder(load_posterior(self.folder), self.painting)
        if self.variant == "FT-W":
            return load_stages(self.folder)[0]
        coder, variant = load_coder(self.folder)
        if variant != self.variant:
            raise UnigsError(
                f"expected a maskige of {self.variant}, got one of {variant}, at {self.folder!r}"
            )
        return coder

    def build_prior(self) -> Stages:
        """A new prior before the first stage."""
        coder = self.read_coder()
        encoder = Encoder(self.backbone, self.download)
        classes = len(coder.painting.colours) if self.told.auxiliary else None
        return Stages(MaskigePrior(self.told, encoder, coder.posterior.size, classes), coder)

    def build_reader(self) -> Stages:
        """FT-W: a new reader behind a frozen stage."""
        stage, _ = load_stages(self.folder)
        reader = WindowReader(len(stage.painting.colours))
        return Stages(stage.prior, Coder(stage.posterior, stage.painting, reader), "reader")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse other classes or colours, another network, another posterior; see ``System``.

        Raises:
            UnigsError: of another model.
        """
        stored = checkpoint["hyper_parameters"]["painting"]
        saved = Painting.from_json(stored, "the checkpoint")
        if self.painting is not None:
            saved.table.refuse_other(self.painting.table, "this run")
            if saved.colours != self.painting.colours:
                raise UnigsError("expected the checkpoint's colours, got others, at model.variant")
        super().on_load_checkpoint(checkpoint)
        stored, mine = checkpoint["hyper_parameters"].get("frozen"), self.hparams["frozen"]
        if stored != mine:
            raise UnigsError(
                f"expected the frozen weights {stored} that the checkpoint was trained on, got "
                f"{mine}, at {self.folder!r}"
            )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of codes and of the auxiliary head; FT-W: of pixels; float32 [B]."""
        classes = number_pixels(batch, self.stages.painting.table)
        if self.variant == "FT-W":
            return {"pixels": measure_reader(self.stages, batch.image, classes)}
        return measure_prior(self.stages, batch.image, classes)

    def make_predictor(self, sampling: Sampling | None = None) -> GSSPredictor:
        settings = Settings(self.side_px, self.least_area)
        return GSSPredictor(self.stages, settings, sampling=sampling)


def hash_weights(folder: str) -> str:
    """A short digest of the safetensors files of a folder."""
    paths = sorted(locate_shipped(folder).glob("*.safetensors"))
    return "-".join(hash_file(path)[:16] for path in paths)


def measure_prior(stages: Stages, image: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Losses of the prior: codes of the painted truth, and pixels of the auxiliary head, if any.

    Args:
        stages: in training.
        image: uint8 [B, 3, H, W].
        classes: int64 [B, H, W] in 0..K, or ``UNKNOWN``.

    Returns:
        float32 [B] each.
    """
    prior = stages.prior
    features = prior.look(image)
    losses, fill = {}, torch.full_like(classes, len(stages.painting.table))
    if prior.auxiliary is not None:
        guess = prior.guess(features, classes.shape[-2:])
        losses["pixels"], fill = measure_pixels(guess, classes), guess.detach().argmax(1)
    codes, known = encode_truth(stages, classes, fill, features.shape[-2:])
    wrong = cross_entropy(prior.predict(features).float(), codes, reduction="none")
    return {"codes": average_known(wrong, known), **losses}


def encode_truth(
    stages: Stages, classes: Tensor, guess: Tensor, grid: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The codes of the true maskige, and which of them count.

    Args:
        stages: with painting and posterior.
        classes: int64 [B, H, W], ``UNKNOWN`` where not known.
        guess: int64 [B, H, W]; fills what is unknown.
        grid: h, w of the codes.

    Returns:
        int64 [B, h, w]; bool [B, h, w].
    """
    stride = stages.posterior.stride
    size = (grid[0] * stride, grid[1] * stride)
    filled = resize_labels(fill_unknown(classes, guess), size)
    return stages.encode(filled), find_known(resize_labels(classes, size), stride)


def measure_reader(stages: Stages, image: Tensor, classes: Tensor) -> Tensor:
    """Loss of FT-W: classes read from what the frozen stage draws; float32 [B]."""
    assert stages.reader is not None
    with torch.no_grad():
        codes = stages.prior.predict(stages.prior.look(image)).argmax(1)
        maskige = stages.decode(codes, image.shape[-2:])
    return measure_pixels(stages.reader(to_signed(maskige)), classes)


def measure_pixels(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross entropy of float [B, K, H, W] over known pixels, float32 [B]."""
    known = classes != UNKNOWN
    wrong = cross_entropy(logits.float(), classes.clamp(min=0), reduction="none")
    return average_known(wrong, known)
