"""FID between generated and real pictures (Tables 3 and 4).

In: pictures in memory, uint8 [B, 3, H, W] (or float 0..1). Out: one float64. clean-fid gives the
resizer and the Inception network; the rest is ours: no temporary folders, no downloads, no
``scipy.linalg.sqrtm`` (SciPy 1.18 removed the call clean-fid needs). The reference statistics lie
in our own cache directory with their checksum inside.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchmetrics import Metric

from unigs.files import hash_file, new_file
from unigs.metrics.extras import check_pictures, find_weights, import_extra
from unigs.records import UnigsError

INCEPTION_NAME = "inception-2015-12-05.pt"
INCEPTION_URL = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/" + INCEPTION_NAME
)
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
INCEPTION_FEATURES = 2048


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Mean float64 [F] and covariance float64 [F, F] of ``count`` pictures' features."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256(str(self.count).encode())
        for part in (self.mean, self.covariance):
            digest.update(np.ascontiguousarray(part, dtype="<f8").tobytes())
        return digest.hexdigest()


def measure_frechet(a: Statistics, b: Statistics) -> float:
    """Squared Fréchet distance of two normal distributions, in float64.

    The trace of the root of AB is the sum of the roots of the eigenvalues of the symmetric
    R B R with R the root of A; so no complex number and no offset is needed, not even where there
    are fewer pictures than features.

    Raises:
        UnigsError: features of different lengths.
    """
    if a.mean.shape != b.mean.shape:
        raise UnigsError(
            f"expected features of one length; got {a.mean.shape} and {b.mean.shape}; in FID"
        )
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = root @ b.covariance @ root
    shared = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0, None)).sum()
    gap = a.mean - b.mean
    distance = gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * shared
    return float(max(distance, 0.0))


def load_inception(
    weights: str | Path | None, device: str | torch.device = "cpu", sha256: str = INCEPTION_SHA256
) -> nn.Module:
    """clean-fid's Inception network from a file.

    Args:
        weights: the TorchScript file; ``INCEPTION_URL`` names the original.
        device: where it runs.
        sha256: what the file must hash to, because TorchScript is code.

    Returns:
        A module, float32 [B, 3, 299, 299] in 0..255 -> [B, 2048].

    Raises:
        UnigsError: no file, another file, or the extra ``eval`` is missing.
    """
    path = find_weights(weights, "--inception-weights FILE", f"{INCEPTION_NAME} ({INCEPTION_URL})")
    found = hash_file(path)
    if found != sha256:
        raise UnigsError(f"expected Inception weights with sha256 {sha256}; got {found}; in {path}")
    inception = import_extra("cleanfid.inception_torchscript", "FID")
    # clean-fid opens a folder and a fixed name inside; the user's file may have any.
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(path.resolve(), Path(folder, INCEPTION_NAME))
        network = inception.InceptionV3W(folder, download=False, resize_inside=False)
    return network.to(device).eval()


def resize_clean(images: torch.Tensor) -> torch.Tensor:
    """clean-fid's resize of uint8 [B, 3, H, W] to float32 [B, 3, 299, 299], still 0..255."""
    resize = import_extra("cleanfid.resize", "FID").build_resizer("clean")
    made = [resize(np.ascontiguousarray(i)) for i in images.permute(0, 2, 3, 1).cpu().numpy()]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


@torch.no_grad()
def extract_features(extractor: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Features float64 [B, F] of pictures, after clean-fid's resize.

    Args:
        extractor: float32 [B, 3, 299, 299] in 0..255 -> [B, F]; see :func:`load_inception`.
        images: uint8, or float in 0..1, [B, 3, H, W].

    Raises:
        UnigsError: pictures with NaN or of another shape, features that are not finite.
    """
    small = resize_clean(check_pictures(images)).to(images.device)
    with torch.autocast(small.device.type, enabled=False):
        features = extractor(small).double()
    if not torch.isfinite(features).all():
        raise UnigsError("expected finite features; got NaN or inf; from FID's extractor")
    return features


def summarise_features(features: np.ndarray, side: str) -> Statistics:
    """Statistics of float [N, F]; ``side`` names them in errors.

    Raises:
        UnigsError: fewer than two pictures.
    """
    _check_count(len(features), side)
    exact = features.astype(np.float64)
    return Statistics(exact.mean(0), np.cov(exact, rowvar=False), len(features))


class FrechetDistance(Metric):
    """FID over any number of pictures and ranks.

    Ranks exchange sums of features and of their products in float64, never pictures.

    Args:
        extractor: float32 [B, 3, 299, 299] in 0..255 -> [B, F]; see :func:`load_inception`.
        features: F.
        reference: statistics of the real pictures; without them ``update(..., real=True)`` adds
            real pictures.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    def __init__(
        self,
        extractor: nn.Module,
        features: int = INCEPTION_FEATURES,
        reference: Statistics | None = None,
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.reference = reference
        for side in ("made", "real"):
            for name, shape in (("count", ()), ("total", (features,)), ("outer", (features,) * 2)):
                zero = torch.zeros(shape, dtype=torch.float64)
                self.add_state(f"{side}_{name}", zero, dist_reduce_fx="sum")

    def update(self, images: torch.Tensor, real: bool = False) -> None:
        """Add pictures.

        Args:
            images: uint8, or float in 0..1, [B, 3, H, W].
            real: they belong to the reference.

        Raises:
            UnigsError: pictures with NaN or of another shape.
        """
        features = extract_features(self.extractor, images.to(self.device))
        side = "real" if real else "made"
        for name, part in (
            ("count", torch.tensor(float(len(features)), dtype=torch.float64)),
            ("total", features.sum(0)),
            ("outer", features.T @ features),
        ):
            state = getattr(self, f"{side}_{name}")
            setattr(self, f"{side}_{name}", state + part.to(state.device))

    def compute(self) -> dict[str, torch.Tensor]:
        reference = self.reference or self.summarise("real")
        distance = measure_frechet(self.summarise("made"), reference)
        return {"fid": torch.tensor(distance, dtype=torch.float64)}

    def summarise(self, side: str) -> Statistics:
        """Statistics of one side, ``"made"`` or ``"real"``, from this rank's (synced) sums.

        Raises:
            UnigsError: fewer than two pictures.
        """
        count, total, outer = (
            getattr(self, f"{side}_{name}").cpu().numpy() for name in ("count", "total", "outer")
        )
        _check_count(int(count), side)
        mean = total / count
        return Statistics(mean, (outer - count * np.outer(mean, mean)) / (count - 1), int(count))


def _check_count(count: int, side: str) -> None:
    if count < 2:
        raise UnigsError(
            f"expected at least two {side} pictures; got {count}; in FID (is the set empty?)"
        )


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write statistics and their checksum, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as temp, open(temp, "wb") as file:
        np.savez(
            file,
            mean=statistics.mean,
            covariance=statistics.covariance,
            count=statistics.count,
            sha256=statistics.sha256,
        )


def read_statistics(path: Path) -> Statistics:
    """Read what :func:`write_statistics` wrote.

    Raises:
        UnigsError: damaged, or not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = Statistics(file["mean"], file["covariance"], int(file["count"]))
            promised = str(file["sha256"])
    except Exception as error:  # zipfile, zlib, NumPy and the system each have their own
        raise UnigsError(f"expected FID statistics; got {error!r}; in {path}") from error
    if found.sha256 != promised:
        raise UnigsError(
            f"expected FID statistics with sha256 {promised}; got {found.sha256}; in {path} "
            "(remove it to make it anew)"
        )
    return found


def recall_statistics(folder: Path, key: str, make: Callable[[], Statistics]) -> Statistics:
    """Read statistics from the cache, or make and keep them.

    Args:
        folder: the cache directory.
        key: everything they depend on: which pictures, which network.
        make: computes them.
    """
    path = locate_statistics(folder, key)
    if path.exists():
        return read_statistics(path)
    statistics = make()
    write_statistics(path, statistics)
    return statistics


def locate_statistics(folder: Path, key: str) -> Path:
    """Where :func:`recall_statistics` keeps them."""
    return folder / f"fid-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
