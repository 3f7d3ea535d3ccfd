"""Where a model runs. Imports torch and nothing of a model, so that a refusal comes early."""

from __future__ import annotations

import torch

from unigs.records import UnigsError


def choose_device(name: str) -> str:
    """A device that is there.

    Raises:
        UnigsError: none of that name.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        said = str(error).splitlines()[0]
        raise UnigsError(f"expected a device of this machine, got {name}: {said}") from error
    return name
