"""CLIP score of pictures and their words (Tables 3 and 4).

In: uint8 [B, 3, H, W] and B texts. Out: the mean of max(100 cos, 0), float64, with the backbone
and the weights named beside it, since scores of different backbones do not compare. open_clip
gives network, preprocessing and tokenizer.

OpenAI's weights need QuickGELU; in a configuration without it they load without a complaint and
give wrong scores. Such pairs are refused here.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchmetrics import Metric

from unigs.files import hash_file, hash_network
from unigs.metrics.extras import check_pictures, find_weights, import_extra
from unigs.metrics.overlaps import to_grid
from unigs.records import UnigsError


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """An open_clip network with all that belongs to it.

    Attributes:
        model: has ``encode_image`` and ``encode_text``.
        preprocess: PIL picture -> float [3, h, w].
        tokenize: texts -> int64 [B, L].
        description: backbone and weights, for tables.
    """

    model: nn.Module
    preprocess: Callable[[Image.Image], torch.Tensor]
    tokenize: Callable[[list[str]], torch.Tensor]
    description: str


def load_clip(
    backbone: str = "ViT-L-14-quickgelu",
    weights: str | Path | None = None,
    download: str | None = None,
    device: str | torch.device = "cpu",
) -> Clip:
    """Load an open_clip network from a file, a folder, or by an explicit download.

    Args:
        backbone: open_clip's name of the architecture; ignored for a folder.
        weights: a checkpoint file, or a folder with ``open_clip_config.json``.
        download: the tag to fetch instead, e.g. ``"openai"``.
        device: where it runs.

    Raises:
        UnigsError: neither file nor tag, unknown backbone, QuickGELU mismatch, extra missing.
    """
    hint = f"an open_clip checkpoint of {backbone}, or --clip-download TAG (e.g. openai)"
    if download is None:
        weights = find_weights(weights, "--clip-weights FILE", hint)
    open_clip = import_extra("open_clip", "the CLIP score")
    if download is None and Path(str(weights)).is_dir():
        name, source = f"local-dir:{weights}", None
        description = f"{Path(str(weights)).name} {hash_network(Path(str(weights)))[:12]}"
    else:
        config = open_clip.get_model_config(backbone)
        if config is None:
            raise UnigsError(f"expected a backbone of open_clip; got {backbone!r}; in load_clip")
        _check_activation(open_clip, backbone, bool(config.get("quick_gelu")), weights, download)
        name, source = backbone, download or str(weights)
        description = (
            f"{backbone}, {download or 'sha256 ' + str(hash_file(Path(str(weights))))[:12]}"
        )
    model, _, preprocess = open_clip.create_model_and_transforms(
        name,
        pretrained=source,
        device=device,
        pretrained_text=False,
        weights_only=source is None or not _is_torchscript(Path(source)),  # never a pickle
    )
    return Clip(model.eval(), preprocess, open_clip.get_tokenizer(name), description)


@torch.no_grad()
def score_pictures(clip: Clip, images: torch.Tensor, texts: Sequence[str]) -> np.ndarray:
    """max(100 cos, 0) of each picture and its text, float64 [B].

    Args:
        clip: the network.
        images: uint8, or float in 0..1, [B, 3, H, W].
        texts: B of them.

    Raises:
        UnigsError: another number of texts, pictures with NaN.
    """
    if len(texts) != len(images):
        raise UnigsError(
            f"expected one text per picture; got {len(texts)} for {len(images)}; in the CLIP score"
        )
    device = next(clip.model.parameters()).device
    rows = check_pictures(images).permute(0, 2, 3, 1).cpu().numpy()
    batch = torch.stack([clip.preprocess(Image.fromarray(row)) for row in rows]).to(device)
    with torch.autocast(batch.device.type, enabled=False):
        seen: Any = clip.model.encode_image(batch)  # type: ignore[operator]
        said: Any = clip.model.encode_text(clip.tokenize(list(texts)).to(device))  # type: ignore[operator]
    cosine = torch.cosine_similarity(seen.double(), said.double(), dim=-1)
    return (100 * cosine).clamp(min=0).cpu().numpy()


class ClipScore(Metric):
    """Mean of max(100 cos, 0) over any number of pictures and ranks.

    ``compute`` gives ``{"clip_score"}``, float64, NaN without pictures; ``description`` says of
    which network.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    score_sum: torch.Tensor
    pictures: torch.Tensor

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip
        self.description = f"100 x cosine, {clip.description}"
        for name in ("score_sum", "pictures"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, images: torch.Tensor, texts: Sequence[str]) -> None:
        """Add pictures; see :func:`score_pictures`."""
        scores = score_pictures(self.clip, images, texts)
        self.score_sum += float(to_grid(scores).sum())
        self.pictures += len(scores)

    def compute(self) -> dict[str, torch.Tensor]:
        return {"clip_score": self.score_sum / self.pictures}


def _check_activation(
    open_clip: Any, backbone: str, quick: bool, weights: str | Path | None, download: str | None
) -> None:
    """Refuse weights trained with another GELU than the backbone's, where that can be known."""
    if download is not None:
        wanted = bool(open_clip.get_pretrained_cfg(backbone, download).get("quick_gelu", quick))
    else:
        wanted = quick or _is_from_openai(Path(str(weights)))
    if wanted != quick:
        raise UnigsError(
            f"expected a backbone {'with' if wanted else 'without'} QuickGELU for "
            f"{download or weights} (OpenAI's need it: e.g. {backbone}-quickgelu); "
            f"got {backbone}; in load_clip"
        )


def _is_from_openai(path: Path) -> bool:
    """OpenAI ships TorchScript archives; copies of them mostly say so in their name."""
    return "openai" in path.name.lower() or _is_torchscript(path)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
