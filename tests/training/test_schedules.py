"""Learning rates and optimizers, against numbers known by hand."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import nn

from training import optimizers
from training.ema import MovingAverage
from training.schedules import Schedule, learning_rate_factor
from training.settings import ScheduleSettings

STEPS = 100


def settings(kind: str, warmup_steps: int = 20, min_lr_ratio: float = 0.5) -> ScheduleSettings:
    return ScheduleSettings(max_grad_norm=1.0, warmup_steps=warmup_steps, min_lr_ratio=min_lr_ratio, kind=kind)


def factor(kind: str, step: int, progress: float | None = None, **changes) -> float:
    return learning_rate_factor(step, step / STEPS if progress is None else progress, settings(kind, **changes), STEPS)


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_warm_up_is_linear_from_half_the_rate(kind):
    assert [factor(kind, step) for step in (0, 10, 20)] == pytest.approx([0.5, 0.75, 1.0])


def test_cosine_falls_from_the_warm_up_to_the_smallest_rate():
    assert [factor("cosine", step) for step in (20, 60, 100)] == pytest.approx([1.0, 0.75, 0.5])


def test_cosine_never_rises_again():
    factors = [factor("cosine", step, min(1.0, step / STEPS)) for step in range(20, 3 * STEPS)]
    assert all(later <= earlier for earlier, later in pairwise(factors))
    assert factors[-1] == 0.5


def test_wsd_is_flat_until_its_last_fifth():
    wsd = [factor("wsd", step, warmup_steps=0, min_lr_ratio=0.0) for step in (0, 50, 80, 90, 100)]
    assert wsd == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.0])


def test_constant_stays():
    assert [factor("constant", step) for step in (20, 60, 100)] == [1.0, 1.0, 1.0]


def test_the_clock_ends_the_schedule_when_it_is_ahead_of_the_steps():
    assert factor("cosine", 30, progress=1.0) == pytest.approx(0.5)


def test_a_warm_up_longer_than_the_training_only_warms_up():
    assert factor("cosine", 100, warmup_steps=200) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "warmup_steps, kind, words",
    [
        (100, "cosine", "0.002 after 100 steps of warm-up, cosine to 0.0002"),
        (0, "constant", "0.002, constant"),
        (5000, "cosine", "up to 0.0012 only, since the warm-up to 0.002 would take 5,000 steps; "
         "--optimizer.warmup_steps sets it"),
    ],
)  # fmt: skip
def test_the_schedule_is_told_and_so_is_a_warm_up_that_never_ends(warmup_steps, kind, words):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=2e-3)
    schedule = Schedule(optimizer, settings(kind, warmup_steps, min_lr_ratio=0.1), num_train_steps=1001)
    assert schedule.in_words() == words


def test_each_group_keeps_its_own_peak_whatever_was_loaded():
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 1.0}, {"params": [second], "lr": 0.1}])
    schedule = Schedule(optimizer, settings("cosine"), STEPS)
    schedule.apply(100, 1.0)
    optimizer.load_state_dict(optimizer.state_dict())
    schedule.apply(20, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.0, 0.1])


def test_ema_follows_the_weights_by_hand():
    weight = nn.Parameter(torch.tensor([0.0]))
    average = MovingAverage({"weight": weight}, decay=0.5)
    with torch.no_grad():
        weight.fill_(8.0)
    average.update(step=0)  # decay min(0.5, 1/10): 0 + 0.9 * 8
    assert average.average["weight"].item() == pytest.approx(7.2)
    with torch.no_grad():
        weight.fill_(0.0)
    average.update(step=100)  # decay 0.5
    assert average.average["weight"].item() == pytest.approx(3.6)
    with average.in_place():
        assert weight.item() == pytest.approx(3.6)
    assert weight.item() == 0.0


class Network(nn.Module):
    """One parameter of every kind that optimizers treat differently."""

    def __init__(self):
        super().__init__()
        self.patch_embedding = nn.Linear(4, 8)
        self.table = nn.Embedding(3, 8)
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
        self.quantizer = nn.Linear(8, 2)
        self.to_pixels = nn.Linear(8, 4)
        self.convolution = nn.Conv3d(8, 8, 3)


def test_only_parameters_of_two_dimensions_or_more_decay():
    optimizer = optimizers.adamw(Network(), lr=0.1, betas=[0.9, 0.99], weight_decay=0.5)
    decayed = {group["weight_decay"]: {p.ndim for p in group["params"]} for group in optimizer.param_groups}
    assert decayed == {0.5: {2, 5}, 0.0: {1}}


def test_muon_gets_the_matrices_inside_the_network_and_adamw_all_others():
    network = Network()
    optimizer = optimizers.muon_with_adamw(network, lr=0.1, adamw_lr=0.01, betas=[0.9, 0.99], weight_decay=0.0)
    hidden = [p for group in optimizer.parts["muon"].param_groups for p in group["params"]]
    assert [id(p) for p in hidden] == [id(network.blocks[0].weight)]
    others = sum(len(group["params"]) for group in optimizer.parts["adamw"].param_groups)
    assert others == len(list(network.parameters())) - 1
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01, 0.01]


def test_muon_with_adamw_goes_on_from_its_saved_state_bit_for_bit():
    def steps(network, optimizer, count):
        for number in range(count):
            for parameter in network.parameters():
                parameter.grad = torch.cos(parameter.detach() * (number + 1))
            optimizer.step()

    torch.manual_seed(0)
    network, copy = Network(), Network()
    numbers = {"lr": 0.1, "adamw_lr": 0.01, "betas": [0.9, 0.99], "weight_decay": 0.1}
    optimizer, other = (optimizers.muon_with_adamw(module, **numbers) for module in (network, copy))
    steps(network, optimizer, 3)
    copy.load_state_dict(network.state_dict())
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    before = network.blocks[0].weight.clone()
    steps(network, optimizer, 2)
    steps(copy, other, 2)
    assert not torch.equal(network.blocks[0].weight, before)
    for parameter, same in zip(network.parameters(), copy.parameters(), strict=True):
        assert torch.equal(parameter, same)


@pytest.mark.parametrize("target", ["torch.optim.SGD", "training.optimizers.adamw"])
def test_optimizers_are_an_open_set(target):
    node = {"_target_": target, "_partial_": True, "lr": 0.1, "weight_decay": 0.1}
    if target.startswith("training"):
        node["betas"] = [0.9, 0.99]
    optimizer = optimizers.build(node, Network())
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1, 0.0}
