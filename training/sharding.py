"""`train.sharding=fsdp`: every process keeps its share of weights, gradients and optimizer state (FSDP2).

A block's weights are whole only while it computes. Files are those of a run that is not sharded: a checkpoint goes on
with or without sharding, on any number of processes.

Torch's `fully_shard` is called here and not through Accelerate, which takes it for GPUs only; this way tests on a CPU
run the code that GPUs run. Autocast makes the low precision, as without sharding: FSDP's own would cast norms, codebook
and losses, too. So weights travel in fp32.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.optim import Optimizer

from models.components.st_transformer import STBlock


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Split a model's weights among all processes, in place: each transformer block by itself, then what is left.

    The model is on its device and the same everywhere. Frozen weights (a world's tokenizer) stay whole: they have
    neither gradients nor optimizer state, and are used by other ways in than `forward`. Raises ValueError where there
    is one process only.
    """
    if accelerator.num_processes == 1:
        raise ValueError(
            "train.sharding=fsdp splits a model among processes, but there is one; set --num_processes=N or "
            "train.sharding=null"
        )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    for module in model.modules():
        if isinstance(module, STBlock) and not frozen.issuperset(module.parameters()):
            fully_shard(module, mesh=mesh, ignored_params=frozen)
    fully_shard(model, mesh=mesh, ignored_params=frozen)
    model.register_load_state_dict_pre_hook(_split_weights)


def shard_optimizer(optimizer: Optimizer) -> None:
    """Let an optimizer of sharded weights load a whole state."""
    for part in getattr(optimizer, "parts", {"": optimizer}).values():
        part.register_load_state_dict_pre_hook(_split_state)


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Inside, a sharded model's weights are whole on each process, which may use them in any way and alone.

    All processes must enter and leave. Changes inside are lost. Does nothing for other models.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            # The root keeps its own few weights from forward to backward, as torch does.
            module.set_reshard_after_forward(module is not model, recurse=False)
            module.reshard()


def collected(tree: Any, *, keep: bool) -> Any:
    """The same containers with whole tensors in CPU memory where `keep` is true; None in place of tensors elsewhere.

    All processes must call this with the same containers. One tensor at a time is whole on the device.
    """
    if isinstance(tree, Tensor) or hasattr(tree, "full_tensor"):
        whole = in_full(tree).detach()
        return whole.to("cpu", copy=True) if keep else None
    if isinstance(tree, dict):
        return {key: collected(value, keep=keep) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(collected(value, keep=keep) for value in tree)
    return tree


def in_full(tensor: Any) -> Tensor:
    """A tensor that is whole. All processes must call this for one that is split: a DTensor, or `zero.Spread`."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(target: Tensor, value: Tensor) -> Tensor:
    """A whole value as `target` is laid out: each process takes its share of what it has itself."""
    if not isinstance(target, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def replicas_allowed() -> AbstractContextManager:
    """Inside, operations on sharded tensors take plain ones, which must be equal on all processes."""
    return implicit_replication()


def _split_weights(module: nn.Module, state: dict[str, Tensor], prefix: str, *_) -> None:
    for name, target in module.state_dict().items():
        if prefix + name in state:
            state[prefix + name] = like(target, state[prefix + name])


def _split_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    split = {
        index: {
            name: like(parameters[index], value) if getattr(value, "shape", ()) == parameters[index].shape else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return state | {"state": split}
