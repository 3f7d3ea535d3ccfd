"""Small tensors of the host on their way to a device, which is not waited for."""

from __future__ import annotations

import torch


def send(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor on a device; from the host to a GPU by way of page-locked memory."""
    if torch.device(device).type != "cuda" or not tensor.is_cpu:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
