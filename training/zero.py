"""DeepSpeed's ZeRO 1 and 2: optimizer state and gradients are split among the processes; files stay what they are.

Accelerate runs here as for several processes without DeepSpeed, and this module calls DeepSpeed. Accelerate's own way
would update the weights inside of `backward`, before anybody could look at the loss and the norm of the gradient, and
cast norms and codebooks to bf16. Ours keeps weights in fp32 and autocast's low precision, as without DeepSpeed.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from training import deepspeed_config

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

COUNTERS = ("step", "mu_product")  # state that an optimizer has once for a parameter, not for each of its numbers
LARGEST_BUCKET = 500_000_000  # DeepSpeed's own value: numbers that travel together


class ZeroAccelerator(Accelerator):
    """Accelerate with DeepSpeed's backward pass and clipping. One model each.

    stage: what is split: 1 = the optimizer's state, 2 = gradients, too.
    """

    def __init__(self, **options: Any):
        # Told about a CPU where there is no GPU: else it would leave each process by itself there.
        super().__init__(cpu=not torch.cuda.is_available(), **options)
        if self.num_processes == 1:
            raise ValueError(
                "distributed_type: DEEPSPEED splits optimizer state among processes, but there is one; set "
                "--num_processes=N or leave --accelerate_config out"
            )
        self.options = deepspeed_config.zero_options()
        self.stage = self.options["stage"]
        self.engine: DeepSpeedEngine | None = None

    def prepare_zero(self, model: nn.Module, optimizer: Optimizer) -> tuple["DeepSpeedEngine", "ZeroOptimizer"]:
        """DeepSpeed's engine around a model, and an optimizer that steps through it."""
        deepspeed = _import_deepspeed(self.device)
        parameters = [list(group["params"]) for group in optimizer.param_groups]
        num_weights = sum(parameter.numel() for group in parameters for parameter in group)
        config = _engine_config(self.options, self.gradient_accumulation_steps, num_weights)
        # For "evaluation" it adds autocast but no DDP.
        model = self.prepare_model(model, evaluation_mode=True)
        self.engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
        return self.engine, ZeroOptimizer(self.engine, parameters)

    def no_sync(self, model: nn.Module) -> AbstractContextManager:
        return nullcontext()  # `backward` says what ends a step

    def backward(self, loss: Tensor, **options: Any) -> None:
        self.engine.set_gradient_accumulation_boundary(self.sync_gradients)
        self.engine.backward(loss)  # a share of grad_accum, as Accelerate does it

    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: int = 2) -> Tensor:
        """The norm of the whole gradient, inf where it is not finite; the next update is clipped to `max_norm`."""
        self.engine.optimizer.clip_grad = 0.0 if max_norm == float("inf") else max_norm  # 0: not at all
        return self.engine.optimizer.scaled_global_norm()


class ZeroOptimizer:
    """A torch optimizer whose state is split; its state dict is that of the optimizer without DeepSpeed.

    parameters: the model's, by group. DeepSpeed flattens each group, and each process's torch optimizer holds a share.
    """

    def __init__(self, engine: "DeepSpeedEngine", parameters: list[list[nn.Parameter]]):
        self._engine = engine
        self._zero = engine.optimizer
        self._own = engine.optimizer.optimizer
        self._parameters = parameters
        self._shares = engine.optimizer.single_partition_of_fp32_groups

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._own.param_groups

    def step(self) -> None:
        """Update the weights; DeepSpeed leaves them alone where the gradient is not finite."""
        # The shares are copies. What else changed weights (a checkpoint, codes that were moved) is in the model.
        self._zero.refresh_fp32_params()
        self._engine.step()

    def zero_grad(self) -> None:
        """Nothing: the next gradient takes the place of one that was not used."""

    def state_dict(self) -> dict[str, Any]:
        """As torch's without DeepSpeed, with `Spread` in place of what is split."""
        state, groups, count = {}, [], 0
        for group, parameters, share in zip(self.param_groups, self._parameters, self._shares, strict=True):
            own = self._own.state.get(share, {})
            for index, parameter in enumerate(parameters, start=count):
                if own:
                    state[index] = {key: _spread(parameter, key, value) for key, value in own.items()}
            indices = list(range(count, count + len(parameters)))
            groups.append({key: value for key, value in group.items() if key != "params"} | {"params": indices})
            count += len(parameters)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take this process's share of a whole state, whoever saved it."""
        state, groups = {}, []
        everything = zip(saved["param_groups"], self._parameters, self._shares, strict=True)
        for number, (group, parameters, share) in enumerate(everything):
            wholes = [saved["state"].get(index, {}) for index in group["params"]]
            if any(wholes):
                state[number] = _flat(wholes, parameters, share)
            groups.append(group | {"params": [number]})
        self._own.load_state_dict({"state": state, "param_groups": groups})


class Spread:
    """One parameter's part of a flat tensor that is split among the processes."""

    def __init__(self, parameter: nn.Parameter, share: Tensor):
        self._parameter = parameter
        self._share = share

    def full_tensor(self) -> Tensor:
        """All of it, shaped as the parameter. All processes must call this."""
        whole = torch.zeros(self._parameter.numel(), dtype=self._share.dtype, device=self._share.device)
        if self._parameter._hp_mapping is not None:  # some of it lies here
            here, there = _places(self._parameter)
            whole[here] = self._share[there]
        dist.all_reduce(whole)
        return whole.view(self._parameter.shape)


def _spread(parameter: nn.Parameter, key: str, value: Tensor | None) -> "Tensor | Spread | None":
    return value if value is None or key in COUNTERS else Spread(parameter, value)


def _flat(wholes: list[dict[str, Any]], parameters: list[nn.Parameter], share: Tensor) -> dict[str, Any]:
    """This process's share of a group's state, from the whole state of each parameter."""
    own: dict[str, Any] = {}
    for whole, parameter in zip(wholes, parameters, strict=True):
        for key, value in whole.items():
            if value is None or key in COUNTERS:
                own[key] = value
                continue
            flat = own.setdefault(key, torch.zeros_like(share))
            if parameter._hp_mapping is not None:
                here, there = _places(parameter)
                flat[there] = value.flatten()[here].to(flat.device)
    return own


def _places(parameter: nn.Parameter) -> tuple[slice, slice]:
    """Where a parameter, flattened, lies in part in this process's share: the part, and its place in the share."""
    mapping = parameter._hp_mapping
    return tuple(
        slice(address.start, address.start + address.numel)
        for address in (mapping.lp_fragment_address, mapping.hp_fragment_address)
    )


def _engine_config(options: dict[str, Any], grad_accum: int, num_weights: int) -> dict[str, Any]:
    # It reserves a whole bucket, whatever the size of the model.
    bucket = min(int(options.get("reduce_bucket_size", LARGEST_BUCKET)), num_weights)
    return {
        "train_micro_batch_size_per_gpu": 1,  # counted by DeepSpeed's logs only
        "gradient_accumulation_steps": grad_accum,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": options | {"reduce_bucket_size": bucket},
        "timers": {"throughput": {"enabled": False}},  # it would wait for the device at every step
    }


def _import_deepspeed(device: torch.device) -> Any:
    os.environ["DS_ACCELERATOR"] = device.type  # else it takes a GPU where there is one, --cpu or not
    import deepspeed

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__ = {}  # else it compiles an operation of its own that nothing here uses
    return deepspeed
