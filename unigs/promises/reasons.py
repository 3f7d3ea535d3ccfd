"""Why a rank ends alone, told to those it leaves waiting, through the store that the ranks met in.

The store is rank 0's, or torchrun's; words of a rank that took the store with it are lost.
"""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed import distributed_c10d

KEY = "unigs/reason"


def tell_reason(words: str) -> None:
    """Leave words for the other ranks, if there are any; the first that are left stay."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    try:
        store = distributed_c10d._get_default_store()
        store.compare_set(KEY, "", f"rank {dist.get_rank()}: {words}")
    except RuntimeError:  # the store's owner is gone
        return


def find_reason() -> str:
    """What another rank that ended left; empty if there is nothing."""
    if not (dist.is_available() and dist.is_initialized()):
        return ""
    try:
        store = distributed_c10d._get_default_store()
        words = store.get(KEY).decode() if store.check([KEY]) else ""
    except RuntimeError:
        return ""
    return "" if words.startswith(f"rank {dist.get_rank()}:") else words


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error only says that another rank is gone."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )
