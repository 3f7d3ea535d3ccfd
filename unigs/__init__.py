"""UniGS: diffusion models that generate images and segment them in one representation."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PLACES = {"UniGSPipeline": "systems.joint.pipeline", "Sampling": "systems.sampling"}


def __getattr__(name: str) -> Any:
    """What users name most, imported when it is asked for."""
    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
