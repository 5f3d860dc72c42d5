"""On a GPU the host does not wait between the gradients of a step and the next step."""

from types import SimpleNamespace

import pytest
import torch

from tests.fake_gpu import DEVICE, crossings
from tests.models import builders
from training.finite_guard import FiniteGuard
from training.optimizers import adamw, muon_with_adamw

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real one is there: tests/training/test_gpu.py")
OPTIMIZERS = {
    "adamw": lambda model: adamw(model, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01),
    "muon": lambda model: muon_with_adamw(model, lr=1e-3, adamw_lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_clipping_the_guard_and_the_update(name):
    kept = {}

    def run(model):
        if not kept:
            accelerator = SimpleNamespace(device=DEVICE, num_processes=1, scaler=None)
            kept["guard"] = FiniteGuard(accelerator, "skip", {"total": 0, "in_a_row": {}}, lambda step, batch: [])
            kept["optimizer"] = OPTIMIZERS[name](model)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        kept["guard"].see("model", torch.zeros((), device=DEVICE))
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if kept["guard"].allows_update("model", 3, norm, kept["optimizer"]):
            kept["optimizer"].step()

    assert crossings(lambda: (builders.world("latent-film"),), run, times=2) == []
