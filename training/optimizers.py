"""Optimizers that know which of a module's parameters want what; each takes the module and the yaml's numbers."""

from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

# Parts of a parameter's name that mark inputs, outputs and code tables. Their rows are looked up or meet data of their
# own scale, so that an orthogonal update, which moves every direction alike, is not what they want.
NOT_HIDDEN = ("embedding", "emb", "to_logits", "to_pixels", "codebook", "quantizer", "bias")


def build(node: DictConfig | dict, module: nn.Module) -> Optimizer:
    """An optimizer from a `_partial_` node. Ours get the module; torch's own get its decayed and undecayed groups.

    Raises ValueError with one line for values that the optimizer does not take.
    """
    factory = instantiate(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node)
    is_torchs = str(node["_target_"]).startswith("torch.optim.")
    try:
        return factory(decay_groups(trainable(module)) if is_torchs else module)
    except (TypeError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"cannot build the optimizer {node['_target_']}: {said}; see the optimizer keys") from error


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def decay_groups(parameters: dict[str, nn.Parameter], **options: Any) -> list[dict[str, Any]]:
    """Two parameter groups: only those with two or more dimensions decay (biases, norms and scales do not)."""
    decayed = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
    spared = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    groups = [{"params": decayed, **options}, {"params": spared, **options, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(module: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float) -> AdamW:
    """The published optimizer (Loshchilov & Hutter, 2019), fused: one kernel instead of hundreds, on CPUs as well."""
    groups = decay_groups(trainable(module))
    return AdamW(groups, lr=lr, betas=tuple(betas), weight_decay=weight_decay, fused=True)


def is_hidden_matrix(name: str, parameter: Tensor, owner: nn.Module) -> bool:
    """Whether Muon may update a parameter: a weight matrix inside the network.

    By type, `nn.Embedding` tables are not; by name, neither is anything below a part whose name has a word of
    `NOT_HIDDEN` (split at dots and underscores, `to_logits` and `to_pixels` as they are).
    """
    if parameter.ndim != 2 or isinstance(owner, nn.Embedding):
        return False
    parts = name.split(".")
    words = {word for part in parts for word in part.split("_")} | set(parts)
    return not words & set(NOT_HIDDEN)


def muon_with_adamw(
    module: nn.Module, *, lr: float, adamw_lr: float, betas: tuple[float, float], weight_decay: float
) -> "MuonWithAdamW":
    """Muon (Jordan et al., 2024) at `lr` for the matrices inside the network, AdamW at `adamw_lr` for all others.

    Muon's updates are scaled to the size of AdamW's (Liu et al., 2025), so rates and decay are of the usual size.
    """
    matrices, others = {}, {}
    for owner_name, owner in module.named_modules():
        for own_name, parameter in owner.named_parameters(owner_name, recurse=False):
            if parameter.requires_grad:
                kind = matrices if is_hidden_matrix(own_name, parameter, owner) else others
                kind[own_name] = parameter
    parts: dict[str, Optimizer] = {}
    if matrices:
        parts["muon"] = Muon(matrices.values(), lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    if others:
        groups = decay_groups(others)
        parts["adamw"] = AdamW(groups, lr=adamw_lr, betas=tuple(betas), weight_decay=weight_decay, fused=True)
    return MuonWithAdamW(parts)


class MuonWithAdamW(Optimizer):
    """Several optimizers that look like one. The parameter groups are theirs, so setting a rate here sets it there.

    As with fused AdamW, an attribute `found_inf` (a tensor, 1 where a step must do nothing) is obeyed on the device.
    """

    def __init__(self, parts: dict[str, Optimizer]):
        self.parts = parts
        super().__init__([p for part in parts.values() for group in part.param_groups for p in group["params"]], {})
        self._step_supports_amp_scaling = True
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]

    def step(self, closure=None):
        loss = None if closure is None else closure()
        found_inf = getattr(self, "found_inf", None)
        for part in self.parts.values():
            if found_inf is not None and not getattr(part, "_step_supports_amp_scaling", False):
                _step_unless(found_inf, part)
            else:
                part.found_inf = found_inf
                part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self._share_groups()


@torch.no_grad()
def _step_unless(found_inf: Tensor, optimizer: Optimizer) -> None:
    """A step that is taken back where found_inf is 1. Needs the optimizer's weights and state twice for a moment."""
    bad = found_inf > 0
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
    before = [(tensor, tensor.clone()) for tensor in (*weights, *_tensors(optimizer))]
    optimizer.step()
    for tensor, value in before:
        tensor.copy_(torch.where(bad, value, tensor))
    known = {id(tensor) for tensor, _ in before}
    for tensor in _tensors(optimizer):
        if id(tensor) not in known:  # made by this step, out of zeros
            tensor.masked_fill_(bad, 0)


def _tensors(optimizer: Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
