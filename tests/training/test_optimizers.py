"""Muon beside AdamW: what a step does that the device says must do nothing."""

import pytest
import torch
from torch import nn

from training import optimizers


def build(module: nn.Module) -> torch.optim.Optimizer:
    return optimizers.muon_with_adamw(module, lr=0.1, adamw_lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)


def tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    states = [state for part in optimizer.parts.values() for state in part.state.values()]
    return [*module.parameters(), *(value for state in states for value in state.values())]


@pytest.mark.parametrize("good_steps", [0, 2])
def test_a_step_with_found_inf_leaves_weights_and_state_alone(good_steps):
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    optimizer = build(layer)
    assert set(optimizer.parts) == {"muon", "adamw"}
    for factor in [1.0] * good_steps + [torch.nan]:
        before = [value.detach().clone() for value in tensors(layer, optimizer)]
        optimizer.zero_grad()
        (factor * layer(torch.ones(2, 4)).square().sum()).backward()
        optimizer.found_inf = torch.tensor(float(factor != 1.0))
        optimizer.step()
        changed = [bool((new != old).any()) for new, old in zip(layer.parameters(), before, strict=False)]
        assert changed == [factor == 1.0] * 2
    after = tensors(layer, optimizer)
    if good_steps:
        assert all(torch.equal(new, old) for new, old in zip(after, before, strict=True))
    assert all(torch.isfinite(value).all() for value in after)


def test_obeying_found_inf_changes_no_good_step():
    ends = []
    for found_inf in (None, torch.zeros(())):
        torch.manual_seed(0)
        layer = nn.Linear(4, 3)
        optimizer = build(layer)
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.ones(2, 4)).square().sum().backward()
            optimizer.found_inf = found_inf
            optimizer.step()
        ends.append(layer)
    assert torch.equal(ends[0].weight, ends[1].weight) and torch.equal(ends[0].bias, ends[1].bias)


@pytest.mark.parametrize("value", ["fast", -1])
def test_values_that_an_optimizer_of_ones_own_does_not_take_are_one_line(value):
    node = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": value}
    with pytest.raises(ValueError, match=r"^cannot build the optimizer torch\.optim\.SGD: .+; see the optimizer keys$"):
        optimizers.build(node, nn.Linear(2, 2))
