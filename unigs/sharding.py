"""Sharded training: weights, gradients, optimiser and average spread over the ranks (FSDP2).

In: a ``System``. Each block of its network is one unit that is gathered while it computes. Out:
checkpoints of whole tensors, the same file that one rank or DDP writes, so that any number of ranks
resumes from it, sharded or not. What is frozen stays whole on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.parallel import ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from unigs.records import UnigsError

RANK_TIMEOUT = timedelta(minutes=10)
"""A rank waits for the others at most this long; Lightning's own is 30 minutes."""

SMALLEST_BLOCK = 0.01
"""Share of the network's parameters below which a block stays with the rest of the network."""


class FSDP2(ModelParallelStrategy):
    """Lightning's strategy around torch's ``fully_shard``, for any ``System``.

    Args:
        replicas: groups of ranks that hold all shards each, as many as nodes for instance (HSDP);
            1 spreads the shards over all ranks.
        timeout: a rank waits for the others at most this long.
    """

    def __init__(self, replicas: int = 1, timeout: timedelta = RANK_TIMEOUT) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)
        self.replicas = replicas

    restore_checkpoint_after_setup = False  # weights are loaded whole, and then sharded
    lightning_restore_optimizer = True

    def setup_environment(self) -> None:
        """Begin to talk, over a mesh of all ranks.

        Raises:
            UnigsError: the replicas do not divide the ranks.
        """
        ranks = self.num_nodes * self.num_processes
        if self.replicas < 1 or ranks % self.replicas:
            raise UnigsError(
                f"expected a number of replicas that divides {ranks} ranks, got {self.replicas}, "
                "at trainer.strategy.replicas"
            )
        self._data_parallel_size = ranks
        super().setup_environment()

    def setup(self, trainer: Any) -> None:
        """Shard what a fit trains; what only answers stays whole, and needs no other rank.

        Raises:
            UnigsError: nothing to shard, or half precision with a loss scaler.
        """
        if trainer.state.fn == TrainerFn.FITTING:
            if getattr(self.precision_plugin, "scaler", None) is not None:
                raise UnigsError(
                    "expected 32-true or bf16-mixed with FSDP2, whose shards no loss scaler sees "
                    f"together, got {trainer.precision}, at trainer.precision"
                )
            network = find_network(self.lightning_module).to(self.root_device)
            shard_network(network, self.make_mesh())
            for name in getattr(self.lightning_module, "ENTRIES", ()):
                if hasattr(network, name):
                    register_fsdp_forward_method(network, name)
        super().setup(trainer)

    def make_mesh(self) -> DeviceMesh:
        """Where shards lie: all ranks in a row, or ``replicas`` rows of them."""
        everyone = self.device_mesh["data_parallel"]
        if self.replicas == 1:
            return everyone
        shape = (self.replicas, everyone.size() // self.replicas)
        names = ("replicate", "shard")
        return init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)

    # --- validation: ranks look at as many batches as they have, each by itself ---

    def on_validation_start(self) -> None:
        """Hold the whole network, so that no rank waits for the others' batches."""
        for unit in self._list_units():
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()

    def on_validation_end(self) -> None:
        for number, unit in enumerate(self._list_units()):
            unit.set_reshard_after_forward(number > 0, recurse=False)  # the first is the network
            unit.reshard()

    # --- checkpoints: whole tensors, on the first rank ---

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return gather(self.lightning_module.state_dict())  # type: ignore[union-attr]

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return gather(ParallelStrategy.optimizer_state(self, optimizer))

    load_checkpoint = ParallelStrategy.load_checkpoint
    save_checkpoint = ParallelStrategy.save_checkpoint
    load_model_state_dict = ParallelStrategy.load_model_state_dict

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        pairs = zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        states = [shard_state(optimizer, state) for optimizer, state in pairs]
        ParallelStrategy.load_optimizer_state_dict(self, {"optimizer_states": states})

    def _list_units(self) -> list[FSDPModule]:
        modules = self.lightning_module.modules()  # type: ignore[union-attr]
        return [part for part in modules if isinstance(part, FSDPModule)]


def refuse_strategy(name: str) -> None:
    """Refuse a strategy that shards in another way than ``FSDP2``.

    Args:
        name: of the strategy, as a config says it, or of its class.

    Raises:
        UnigsError: FSDP1 or DeepSpeed.
    """
    if name.lower().startswith(("fsdp", "deepspeed")) and name != FSDP2.__name__:
        raise UnigsError(
            f"expected auto, ddp or unigs.sharding.FSDP2 (configs/fsdp2.yaml), got {name}, at "
            "trainer.strategy"
        )


def refuse_unsharded(module: Any, strategy: Any) -> None:
    """Refuse a strategy that leaves sharding to a module which does none.

    Args:
        module: configured, and set up by the strategy.
        strategy: the trainer's.

    Raises:
        UnigsError: nothing is sharded, so ranks would train unsynchronised; or tensor parallelism.
    """
    if not isinstance(strategy, ModelParallelStrategy):
        return
    name = type(strategy).__name__
    if strategy.device_mesh["tensor_parallel"].size() > 1:
        raise UnigsError(
            f"expected ranks that hold other samples each, got {name} with "
            f"tensor_parallel_size {strategy.device_mesh['tensor_parallel'].size()}, at "
            "trainer.strategy; use unigs.sharding.FSDP2"
        )
    if not any(isinstance(weight, DTensor) for weight in module.parameters()):
        raise UnigsError(
            f"expected sharded weights, got none that {name} or {type(module).__name__} sharded, "
            "at trainer.strategy; use unigs.sharding.FSDP2"
        )


def find_network(module: Any) -> nn.Module:
    """The part of a ``System`` that is trained.

    Raises:
        UnigsError: a module that is none.
    """
    name = getattr(module, "NETWORK", None)
    if name is None:
        raise UnigsError(
            f"expected a System, whose network can be sharded, got {type(module).__name__}, at "
            "trainer.strategy; train it with strategy: auto"
        )
    return getattr(module, name)


def list_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The parts that are gathered one at a time: members of the outermost lists of modules.

    Small ones, below ``SMALLEST_BLOCK`` of the parameters, stay with the rest of the network.
    """
    least = SMALLEST_BLOCK * count_parameters(network)

    def walk(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if isinstance(module, nn.ModuleList):
                if count_parameters(child) >= least:
                    yield child
            else:
                yield from walk(child)

    return walk(network)


def count_parameters(module: nn.Module) -> int:
    """Numbers in the parameters of a module."""
    return sum(weight.numel() for weight in module.parameters())


def shard_network(network: nn.Module, mesh: DeviceMesh) -> None:
    """Spread the first rank's network over a mesh, in place, block by block and then the rest.

    Args:
        network: on the ranks' devices.
        mesh: one row of ranks, or replicas x shards.

    Raises:
        UnigsError: weights that do not lie in the order of their axes.
    """
    for name, weight in network.named_parameters():
        if not weight.is_contiguous():
            raise UnigsError(
                f"expected weights in the order of their axes to shard, got {name} of strides "
                f"{weight.stride()}; set model.compute.channels_last to false"
            )
    for tensor in network.state_dict().values():
        dist.broadcast(tensor, 0)
    for unit in (*list_blocks(network), network):
        sharded = fully_shard(unit, mesh=mesh)
        if mesh.device_type == "cpu":  # gloo has no averages
            sharded.set_force_sum_reduction_for_comms(True)


def take_local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, in the same memory; of a plain one all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def place_as(value: Tensor, weight: Tensor) -> Tensor:
    """A copy of a whole tensor that lies as a weight does: on its device, or in its shards."""
    if isinstance(weight, DTensor) and not isinstance(value, DTensor):
        mine = value.detach().to(weight.device)
        return distribute_tensor(mine, weight.device_mesh, weight.placements, src_data_rank=None)
    return value.detach().to(weight.device, copy=True)


def gather(state: Any) -> Any:
    """Nested values whose sharded tensors are whole, on the first rank's CPU; None on the others.

    All ranks must call it. Plain tensors stay as they are.
    """

    def make_whole(shards: DTensor) -> Tensor | None:
        whole = shards.full_tensor()
        return whole.cpu() if dist.get_rank() == 0 else None

    return apply_to_collection(state, DTensor, make_whole)


def shard_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state of whole tensors, those of a weight's shape sharded as it is."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    placed = {
        number: {
            name: place_as(value, weight)
            if isinstance(value, Tensor) and value.shape == weight.shape
            else value
            for name, value in state["state"].get(number, {}).items()
        }
        for number, weight in zip(numbers, weights, strict=True)
    }
    return {**state, "state": placed}
