"""What is computed twice instead of kept: the same numbers as the plain formulas, and the memory that it saves."""

import pytest
import torch
from torch import nn

from benchmarks.memory import kept_for_backward
from models.components import cosine_attention, position_generator, recompute
from models.components.positions import causal_alibi
from models.components.st_transformer import STBlock, STTransformer
from tests.models import builders
from tests.models.builders import WORLDS, clip, settle

MODELS = [("tokenizer", name) for name in builders.LAYOUTS] + [("world", name) for name in WORLDS]


def make(kind: str, name: str) -> nn.Module:
    """A model whose every path counts, in training mode."""
    torch.manual_seed(0)
    model = builders.tokenizer(layout=name) if kind == "tokenizer" else builders.world(name)
    settle(model)
    return model.train()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Loss and gradients of one pass."""
    model.zero_grad()
    loss = model(clip(), 0).loss
    loss.backward()
    named = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **named}


@pytest.fixture
def plain(monkeypatch):
    """A switch to the formulas that leave everything to autograd."""

    def switch():
        for module in (recompute, cosine_attention, position_generator):
            monkeypatch.setattr(module, "is_eager", lambda: False)

    return switch


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of a few rows, so that even these sizes need several, and a shorter last one."""
    monkeypatch.setattr(recompute, "ROWS", 7)
    monkeypatch.setattr(cosine_attention, "HELD", 1500)


# ------------------------------------------------------------------------------------------------------- same numbers


@pytest.mark.parametrize(("kind", "name"), MODELS)
def test_loss_and_gradients_are_those_of_the_plain_formulas(kind, name, plain, small_pieces):
    model = make(kind, name)
    ours = gradients(model)
    plain()
    expected = gradients(model)
    assert ours.keys() == expected.keys()
    total = torch.cat([value.flatten() for value in expected.values()]).norm()
    for key, value in expected.items():
        # Sums in another order: 1e-5 of the tensor's own size; where it is zero but for rounding, 1e-6 of them all.
        assert (ours[key] - value).norm() <= 1e-5 * value.norm() + 1e-6 * total, key


@pytest.mark.parametrize(("kind", "name"), MODELS)
def test_without_gradients_the_loss_has_the_same_bits(kind, name):
    model = make(kind, name)
    with torch.no_grad():
        frozen = model(clip(), 0).loss
    assert torch.equal(frozen, model(clip(), 0).loss)


@pytest.mark.parametrize("dim", [1, 2])
def test_attention_gradients_are_exact_where_the_formula_is_differentiated_in_double_precision(dim, small_pieces):
    torch.manual_seed(0)
    sizes = [(2, 6, 5, 24), (2, 6, 5, 48), (8,), (8,), (3, (6, 5)[dim - 1], (6, 5)[dim - 1])]
    inputs = [torch.randn(size) for size in sizes]
    grad = torch.randn(sizes[0])
    found = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    cosine_attention.cosine_attention(*found, dim).backward(grad)
    cosine_attention.cosine_attention(*exact, dim).backward(grad.double())
    for ours, double in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), double.grad, atol=2e-5, rtol=1e-5)


def test_half_precision_gradients_stay_within_its_rounding(plain):
    model = make("tokenizer", "published")

    def of_half():
        with torch.autocast("cpu", torch.bfloat16):
            return gradients(model)

    exact, ours = gradients(model), of_half()
    plain()
    theirs = of_half()
    for name, value in exact.items():
        assert ours[name].dtype == torch.float32
        assert (ours[name] - value).norm() <= 1.5 * (theirs[name] - value).norm() + 0.02 * value.norm(), name


# ----------------------------------------------------------------------------------------------- gradient checkpointing


@pytest.mark.parametrize(("kind", "name"), MODELS)
def test_gradient_checkpointing_changes_no_bit(kind, name):
    model = make(kind, name)
    without = gradients(model)
    transformers = [module for module in model.modules() if isinstance(module, STTransformer)]
    for transformer in transformers:
        transformer.gradient_checkpointing = True
    checkpointed = gradients(model)
    assert transformers and without.keys() == checkpointed.keys()
    assert [key for key, value in without.items() if not torch.equal(value, checkpointed[key])] == []


# --------------------------------------------------------------------------------------------------------- what is kept


def block(batch: int, heads: int = 2) -> tuple[STBlock, torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    layer = STBlock(96, heads, 96 // heads, 4, axes=("spatial", "temporal"), feed_forwards="both", norm_keys=False)
    x = torch.randn(batch, 4, 8, 8, 96, requires_grad=True)
    return layer, x, {"spatial": torch.randn(heads, 64, 64, requires_grad=True), "temporal": causal_alibi(4, heads)}


@pytest.mark.parametrize("batch", [1, 3])
def test_a_block_keeps_25_times_its_input(batch):
    layer, x, biases = block(batch)
    kept = kept_for_backward(lambda: layer(x, biases).sum(), layer).total()
    # Two halves: input, input of attention and of feed-forward, q, k, v, attention output, [value, gate] at 2·4·2/3.
    stream = x.numel() * x.element_size()
    assert kept == pytest.approx(2 * (7 + 16 / 3) * stream, rel=0.03)


def test_what_a_block_keeps_does_not_grow_with_its_heads():
    few, many = block(1, heads=2), block(1, heads=8)
    kept = [kept_for_backward(lambda b=b: b[0](b[1], b[2]).sum(), b[0]).total() for b in (few, many)]
    biases = [sum(bias.numel() * bias.element_size() for bias in b[2].values()) for b in (few, many)]
    assert kept[1] - kept[0] == biases[1] - biases[0]  # probabilities would be 24 times as much


def test_gradient_checkpointing_keeps_the_inputs_of_blocks():
    torch.manual_seed(0)
    transformer = STTransformer(96, 2, 48, 3, 4)
    x, bias = torch.randn(1, 4, 8, 8, 96, requires_grad=True), torch.randn(2, 64, 64, requires_grad=True)
    transformer.gradient_checkpointing = True
    kept = kept_for_backward(lambda: transformer(x, bias).sum(), transformer).total()
    stream = x.numel() * x.element_size()
    assert kept == pytest.approx((3 + 1) * stream, rel=0.1)  # three blocks, the last norm


def test_kept_bytes_count_a_storage_once_and_weights_never():
    layer = nn.Linear(8, 8, bias=False)
    x = torch.randn(4, 8, requires_grad=True)
    assert (
        kept_for_backward(lambda: (layer(x) + layer(x.view(2, 2, 8)).flatten(0, 1)).sum(), layer).total() == 4 * 8 * 4
    )
