"""Where a verb's model lies and what it is, known without loading it. No torch."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from unigs import __version__
from unigs.files import explain_errors, hash_file, hash_files
from unigs.records import UnigsError, show
from unigs.weights import DIGESTS, INDEX, locate_shipped, read_config

DEFAULT = "tiny"
"""The model that a verb takes if none is named."""

PACKAGES = ["torch", "lightning", "diffusers", "transformers", "numpy", "pillow", "pycocotools"]


def locate_model(folder: Path | None, option: str = "--model") -> Path:
    """A model's folder: the one given or named, or the one that ships with the package.

    Raises:
        UnigsError: no such folder, or no model in it.
    """
    if folder is None:
        shipped = locate_shipped(DEFAULT)
        if not (shipped / INDEX).exists():
            raise UnigsError(
                f"expected the pipeline that ships with the package, found none at {shipped}; "
                f"install the package again, or give one with {option} FOLDER"
            )
        return shipped
    folder = locate_shipped(folder)
    with explain_errors("a model's folder", folder):
        if not (folder / INDEX).exists():
            came = "a file" if folder.is_file() else "none" if folder.exists() else "nothing there"
            raise UnigsError(
                f"expected a folder with {INDEX}, as unigs export writes one, got {came}, at "
                f"{folder}"
            )
    return folder


def name_system(folder: Path) -> str:
    """The class that a model's index names."""
    return show(read_config(folder / INDEX).get("_class_name"), 60)


def hash_model(folder: Path) -> str:
    """One sha256 for all parts of a model: that of its digests, or of every file's own."""
    if (folder / DIGESTS).exists():
        return hash_file(folder / DIGESTS)
    return hash_files(folder, folder.rglob("*"))


def list_versions() -> dict[str, str]:
    """Of us and of the packages that decide what a model answers; what is missing is left out."""
    versions = {"unigs": __version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
