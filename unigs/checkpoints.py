"""Checkpoint files: whole, checked, finite, and without code (torch below, trainer above).

A checkpoint is torch's own zip archive, written beside its target, synced and renamed; every record
of it carries a CRC-32, which is checked before a tensor is used. Weights are never saved if they
are not finite. Nothing is unpickled but tensors and plain values, wherever a file comes from.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from unigs.files import new_file
from unigs.records import UnigsError
from unigs.runs import Run
from unigs.signals import ENDING, hold_signals
from unigs.weights import (
    BadCheckpoint,
    check_checkpoint,
    find_not_finite,
    find_trouble,
    is_url,
)

LAST = "last.ckpt"
RUN = "unigs_run"
"""Key of the run's options in a checkpoint."""


class NotFinite(UnigsError):
    """A loss, a gradient or a weight that is NaN or infinite.

    Args:
        words: what was expected, what came, where.
        agreed: whether all ranks raise it at this very point, and so may wait for each other.
    """

    def __init__(self, words: str, agreed: bool = False) -> None:
        super().__init__(words)
        self.agreed = agreed


class _Writer:
    """A file that remembers why it could not be written; torch says something else."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


class CheckedIO(TorchCheckpointIO):
    """Lightning's reader and writer of checkpoints, with the promises of this module."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint whole or not at all.

        Raises:
            NotFinite: a weight or its average is not finite; the older file stays.
            DiskFull: no room; likewise.
        """
        check_finite(checkpoint)
        if is_url(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # An exception of a signal's handler would abort torch's writer, in C++.
        with hold_signals(*ENDING), new_file(target) as temp, open(temp, "wb") as file:
            writer = _Writer(file)
            try:
                torch.save(checkpoint, writer)  # type: ignore[arg-type]
            except RuntimeError:
                if writer.error:
                    raise writer.error from None
                raise
        return None

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint; tensors and plain values only, whatever ``weights_only`` says.

        Raises:
            BadCheckpoint: see :func:`read_checkpoint`.
        """
        return read_checkpoint(path, map_location)


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint that was checked to the last byte.

    Args:
        path: a file that ``unigs fit`` wrote.
        map_location: as ``torch.load`` takes it.

    Raises:
        BadCheckpoint: none there; a URL; cut, damaged, empty, a Git LFS pointer or another file.
    """
    return _load(check_checkpoint(path), map_location)


def _load(file: Path, map_location: Any, mmap: bool = False) -> dict[str, Any]:
    try:
        content = torch.load(file, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise BadCheckpoint(
            f"expected tensors and plain values, got a pickle of other things, at {file} ({reason})"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadCheckpoint(f"expected a checkpoint, got {reason}, at {file}") from None
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise BadCheckpoint(f"expected a checkpoint of unigs fit, got another file, at {file}")
    return content


def find_last(folders: Iterable[Path], run: Run) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run.

    Args:
        folders: where its checkpoints lie.
        run: what it is.

    Returns:
        The file, or None if there is none; and what was passed over, with the reason.
    """
    files = {file.resolve(): file for folder in folders for file in folder.glob("*.ckpt")}
    newest = sorted(files.values(), key=lambda file: (-_written_at(file), file.name != LAST))
    skipped = []
    for file in newest:
        if trouble := find_trouble(file):
            skipped.append(f"{file} ({trouble})")
            continue
        try:
            content = _load(file, "cpu", mmap=True)
        except BadCheckpoint as error:
            skipped.append(f"{file} ({error})")
            continue
        saved = content.get(RUN, {})
        if "optimizer_states" not in content:
            skipped.append(f"{file} (weights alone)")
            continue
        if changed := run.list_changes(saved, "refused"):
            skipped.append(f"{file} (another run: {'; '.join(changed)})")
            continue
        return file, skipped
    return None, skipped


def _written_at(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


def check_finite(checkpoint: Mapping[str, Any]) -> None:
    """Refuse weights, and their average, that are not finite.

    Raises:
        NotFinite: with the first such tensor's name.
    """
    callbacks = checkpoint.get("callbacks", {})
    average = (callbacks.get("EMA") or {}).get("weights", {})
    for kind, weights in (("weight", checkpoint["state_dict"]), ("averaged weight", average)):
        if name := find_not_finite(weights.items()):
            raise NotFinite(
                f"expected finite weights to save, got NaN or infinity in the {kind} {name}, at "
                f"step {checkpoint.get('global_step')}; older checkpoints stay as they are"
            )


def read_ema(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor] | None:
    """The averaged weights of the network inside a loaded checkpoint, by name, or None."""
    state = checkpoint.get("callbacks", {}).get("EMA") or {}
    return state.get("weights")
