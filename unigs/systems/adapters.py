"""Low-rank adapters (LoRA, Hu et al. 2022) on a frozen network, by peft; merged, it is stock again.

In: a network and which of its layers to adapt. Out: the same network, which trains little and keeps
its frozen weights in half the memory; or its weights with the adapters added, under the names and
shapes of the network that it was. Needs the extra ``adapters`` to train and to export, never to
load what was exported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from unigs.records import UnigsError
from unigs.seeds import derive_seed

NAME = "default"
"""Of the one set of adapters that a network gets, in peft's words."""


@dataclass(frozen=True)  # no slots: the command line reads its fields
class Adapters:
    """LoRA in place of training every weight.

    Args:
        rank: of each added matrix.
        scale: factor of what is added, alpha / rank in LoRA's words.
        layers: ends of the names of linear layers and convolutions that are adapted; by default
            attention and feed-forward.
        base_dtype: of the frozen weights; bfloat16 needs a mixed precision of the trainer.
    """

    rank: int = 64
    scale: float = 1.0
    layers: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    base_dtype: Literal["bfloat16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.layers:
            raise UnigsError(
                f"expected a rank of at least 1 and some layers, got {self.rank} and "
                f"{list(self.layers)}, at model.adapters"
            )

    def check_precision(self, precision: str) -> None:
        """Refuse a precision in which frozen and trained weights do not meet.

        Raises:
            UnigsError: names both options.
        """
        if self.base_dtype != "float32" and not precision.endswith("-mixed"):
            raise UnigsError(
                f"expected bf16-mixed or 16-mixed, got {precision}, at trainer.precision: "
                f"model.adapters.base_dtype is {self.base_dtype}; float32 goes with any precision"
            )


def adapt(network: nn.Module, told: Adapters, whole: Iterable[str]) -> None:
    """Freeze a network, add adapters, and let some of its layers be trained as they are.

    Added matrices begin so that nothing is added; they depend on no global seed.

    Args:
        network: changed in place.
        told: which adapters.
        whole: names of the modules that are trained whole.

    Raises:
        UnigsError: peft is missing, or no layer has such a name.
    """
    peft = import_peft()
    names = [name for name, _ in network.named_modules()]
    for layer in told.layers:
        if not any(f".{name}".endswith(f".{layer}") for name in names):
            raise UnigsError(
                f"expected ends of names of layers of the network, got {layer!r}, at "
                "model.adapters.layers"
            )
    network.requires_grad_(False)
    nn.Module.to(network, getattr(torch, told.base_dtype))  # diffusers' own warns for nothing
    config = peft.LoraConfig(
        r=told.rank, lora_alpha=told.rank * told.scale, target_modules=list(told.layers)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(0, 0, "adapters"))
        peft.inject_adapter_in_model(config, network, NAME)
    for name in whole:
        network.get_submodule(name).requires_grad_(True)


def merge(network: nn.Module) -> dict[str, torch.Tensor]:
    """State of an adapted network without adapters, by the names it had before, float32.

    What is adapted is new; all else of float32 is the network's own memory.
    """
    peft = import_peft()
    weights = {
        name.replace(".base_layer.", "."): value.float()
        for name, value in network.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in network.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            added = layer.get_delta_weight(NAME).detach()
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + added
    return weights


def import_peft() -> Any:
    """The library, once it is needed.

    Raises:
        UnigsError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise UnigsError(
            f"expected peft, for model.adapters, got none ({error}): pip install 'unigs[adapters]'"
        ) from error
    return peft
