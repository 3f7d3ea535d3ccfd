"""``unigs doctor``: common trouble, each in words and with the remedy."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path

from unigs.files import locate_cache
from unigs.records import UnigsError, show
from unigs.verbs.model import list_versions

Finding = tuple[str, str]
"""(level, words); level is ok, note or trouble. Notes do not fail the check."""


def check_python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return ("ok" if sys.version_info >= (3, 11) else "trouble", f"Python {version} (3.11 or newer)")


def check_core() -> Finding:
    """Every requirement imports."""
    names = "torch lightning diffusers transformers webdataset pycocotools kornia torchmetrics"
    broken = []
    for name in names.split():
        try:
            import_module(name)
        except Exception as error:
            broken.append(f"{name} ({type(error).__name__}: {error})")
    if broken:
        return "trouble", f"core packages fail to import: {'; '.join(broken)}; run make install"
    return "ok", f"core packages import: {names}"


def check_versions() -> Finding:
    """What an answer depends on; a report of trouble should name it."""
    return "ok", ", ".join(f"{name} {version}" for name, version in list_versions().items())


def check_lightning_version() -> Finding:
    version = metadata.version("lightning")
    if version in ("2.6.2", "2.6.3"):
        return "trouble", f"lightning {version} is malicious (GHSA-w37p-236h-pfx3): remove it now"
    return "ok", f"lightning {version}"


def check_torchvision() -> Finding:
    """A torchvision of another build breaks half of the stack; none at all is fine."""
    try:
        import_module("torchvision")
    except ImportError:
        return "note", "torchvision is not installed; only the eval extra needs it"
    except Exception as error:
        return "trouble", (
            f"torchvision is broken ({error}): it was built for another torch. Install torch and "
            "torchvision from the same index, or remove torchvision"
        )
    return "ok", f"torchvision {metadata.version('torchvision')} works"


def check_eval_extra() -> Finding:
    missing = [name for name in ("open_clip_torch", "clean-fid") if not _installed(name)]
    if missing:
        return "note", f"eval extra incomplete ({', '.join(missing)}): pip install 'unigs[eval]'"
    return "ok", "eval extra installed"


def check_gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1] / 2**30
        return "ok", f"GPU {name}, {memory:.0f} GiB"
    return "note", "no CUDA GPU: the quickstart runs on a CPU, joint.yaml needs a GPU"


def check_command() -> Finding:
    """Another package may own the ``lightning`` script; last installed wins."""
    owners = [
        dist.metadata["Name"]
        for dist in metadata.distributions()
        for entry in dist.entry_points
        if entry.group == "console_scripts" and entry.name == "lightning"
    ]
    others = sorted(set(owners) - {"unigs"})
    if others:
        return "trouble", (
            f"the command 'lightning' is also installed by {', '.join(others)}; "
            "use 'unigs' or 'python -m unigs', which are the same"
        )
    found = shutil.which("lightning")
    return "ok", f"'lightning' is ours ({found or 'not on PATH; activate the environment'})"


def check_cache() -> Finding:
    """The hub's cache, where typed hub ids are downloaded to."""
    folder = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return _check_writable(folder, "HF_HOME")


def _check_writable(folder: Path, variable: str) -> Finding:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        words = f"cache {folder} is not writable ({error}): set {variable} to one that is"
        return "trouble", words
    return "ok", f"cache {folder} is writable"


def check_copies() -> Finding:
    """Copies of remote shards and FID statistics; what others left there can be read at least."""
    folder = locate_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return "note", (
            f"copies in {folder} are used and none are added ({error}): to read remote shards, set "
            "UNIGS_CACHE to a folder that is writable"
        )
    return "ok", f"copies of remote files go to {folder}"


def check_shared_memory() -> Finding:
    """Loader workers hand batches over through /dev/shm."""
    if not Path("/dev/shm").exists():
        return "note", "no /dev/shm on this system"
    free = shutil.disk_usage("/dev/shm").free / 2**30
    if free < 1:
        return "trouble", (
            f"/dev/shm has {free:.2f} GiB free; loader workers need about 1 GiB: "
            "start the container with --shm-size=8g"
        )
    return "ok", f"/dev/shm has {free:.1f} GiB free"


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_versions,
    check_core,
    check_lightning_version,
    check_torchvision,
    check_eval_extra,
    check_gpu,
    check_command,
    check_cache,
    check_copies,
    check_shared_memory,
)


def report_health() -> None:
    """Check the installation and the machine, and say in words what to do about trouble.

    Raises:
        UnigsError: at least one check found trouble.
    """
    findings = [check() for check in CHECKS]
    marks = {"ok": "ok      ", "note": "note    ", "trouble": "TROUBLE "}
    for level, words in findings:
        print(marks[level] + show(words))
    troubles = sum(level == "trouble" for level, _ in findings)
    if troubles:
        raise UnigsError(f"expected no trouble, found {troubles}; see above")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
