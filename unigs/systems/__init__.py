"""What we train: systems that make a picture, a label map, or both (data -> Prediction).

``system`` is the noun that trainer, evaluation and command line know; ``predictor`` is what it
makes; ``sampling`` says how; ``load`` reads checkpoints and folders of any of them. Each system has
a room: ``joint`` is UniGS, ``pix2seq_d`` is Pix2Seq-D, ``gss`` is GSS. Names of classes are
imported late, so that a room stays light.
"""

from importlib import import_module
from typing import Any

_PLACES = {
    "UniGS": "unigs.systems.joint.module",
    "Pix2SeqD": "unigs.systems.pix2seq_d.module",
    "GSS": "unigs.systems.gss.module",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
