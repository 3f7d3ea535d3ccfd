"""Systems and data of flat options, each sorted into the record that has a field of its name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from unigs.data import HeldOut, Loading, UniGSData
from unigs.systems import UniGS
from unigs.systems.joint.module import Compute
from unigs.systems.joint.objective import Objective
from unigs.systems.system import Optimizer


def sort_options(kinds: dict[str, type], flat: dict[str, Any]) -> dict[str, Any]:
    """Options by argument; those that no record of ``kinds`` knows stay as they are."""
    sorted_: dict[str, Any] = {}
    left = dict(flat)
    for argument, kind in kinds.items():
        mine = {f.name: left.pop(f.name) for f in fields(kind) if f.name in left}
        if mine:
            sorted_[argument] = kind(**mine)
    return {**sorted_, **left}


def build_data(shards: str, **flat: Any) -> UniGSData:
    """``UniGSData``; ``samples_per_task``, ``batch_size`` and ``split`` are the validation's."""
    return UniGSData([shards], **sort_options({"loading": Loading, "validation": HeldOut}, flat))


def build_unigs(base: str, **flat: Any) -> UniGS:
    """The joint model."""
    kinds = {"objective": Objective, "optimizer": Optimizer, "compute": Compute}
    return UniGS(base, **sort_options(kinds, flat))
