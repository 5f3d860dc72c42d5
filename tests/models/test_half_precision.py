"""Under bf16 autocast, on a CPU as on a GPU: products are narrow; norms, probabilities and losses are not."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models import builders
from tests.models.builders import QUANTIZERS, WORLDS, clip

aten = torch.ops.aten
WIDE = {
    aten.native_layer_norm.default,
    aten.linalg_vector_norm.default,
    aten._softmax.default,
    aten._log_softmax.default,
    aten.nll_loss_forward.default,
    aten.mse_loss.default,
    aten.abs.default,
    aten.exp.default,
    aten.tanh.default,
}
PRODUCTS = {aten.mm.default, aten.addmm.default}
MODELS = [("tokenizer", name) for name in QUANTIZERS] + [("world", name) for name in WORLDS]


class Widths(TorchDispatchMode):
    """Counts operations by the type of their first tensor."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if args and isinstance(args[0], torch.Tensor):
            self.counts[function, args[0].dtype] += 1
        return function(*args, **(kwargs or {}))


def make(kind: str, name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return (builders.tokenizer(name) if kind == "tokenizer" else builders.world(name)).train()


@pytest.mark.parametrize(("kind", "name"), MODELS)
def test_norms_probabilities_and_losses_are_computed_in_single_precision(kind, name):
    model, batch = make(kind, name), clip()
    with torch.autocast("cpu", torch.bfloat16), Widths() as widths:
        output = model(batch, 0)
    assert output.loss.dtype == torch.float32
    assert {str(function) for function in WIDE if widths.counts[function, torch.bfloat16]} == set()
    assert sum(widths.counts[function, torch.bfloat16] for function in PRODUCTS)


@pytest.mark.parametrize(("kind", "name"), MODELS)
def test_the_loss_is_near_that_of_single_precision(kind, name):
    model, batch = make(kind, name), clip()
    exact = model(batch, 0).loss
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch, 0).loss
    assert half.item() == pytest.approx(exact.item(), rel=0.01) and half != exact
