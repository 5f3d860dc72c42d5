import pytest
import torch
import torch.nn.functional as F

from models.components.quantizers import perplexity
from tests.models.builders import QUANTIZERS


@pytest.fixture(params=QUANTIZERS)
def quantizer(request):
    torch.manual_seed(0)
    return QUANTIZERS[request.param](dim=16)


def test_indices_are_in_range_and_the_same_in_training_and_encoding(quantizer):
    x = torch.randn(4, 9, 16)
    result = quantizer(x)
    assert result.vectors.shape == x.shape
    assert torch.equal(result.indices, quantizer.indices(x))
    assert result.indices.min() >= 0 and result.indices.max() < quantizer.codebook_size


def test_codebook_reproduces_the_quantised_vectors(quantizer):
    x = torch.randn(4, 9, 16)
    result = quantizer.eval()(x)
    again = quantizer.project_out(F.embedding(result.indices, quantizer.codebook()))
    torch.testing.assert_close(result.vectors, again)


def test_gradients_pass_straight_through(quantizer):
    x = torch.randn(4, 9, 16, requires_grad=True)
    quantizer(x).vectors.square().sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["vq", "vq-revived"])
def test_vector_quantizer_takes_the_code_a_brute_force_search_takes(name):
    torch.manual_seed(1)
    quantizer = QUANTIZERS[name](dim=16)
    x = torch.randn(50, 16)
    z = F.normalize(quantizer.project_in(x), dim=-1)
    scores = (z @ quantizer.codebook().T).tolist()
    best = [max(range(12), key=row.__getitem__) for row in scores]
    assert quantizer.indices(x).tolist() == best


def test_vector_quantizer_loss_is_the_papers_and_zero_in_eval_mode():
    torch.manual_seed(1)
    quantizer = QUANTIZERS["vq"](dim=16)
    x = torch.randn(6, 16)
    z = F.normalize(quantizer.project_in(x), dim=-1)
    error = (z - quantizer.codebook()[quantizer.indices(x)]).square().mean()
    torch.testing.assert_close(quantizer(x).loss, 1.25 * error)
    assert quantizer.eval()(x).loss == 0


def test_codes_that_nobody_chose_move_to_vectors_of_the_batch():
    torch.manual_seed(1)
    quantizer = QUANTIZERS["vq-revived"](dim=16)
    x = torch.randn(1, 16).expand(20, 16)  # one vector can use one code only
    pass_batches(quantizer, [x])
    away = quantizer.codebook().detach().clone()
    pass_batches(quantizer, [x])
    moved = (quantizer.codebook() != away).any(dim=1)
    assert moved.sum() == 11
    z = F.normalize(quantizer.project_in(x[0]), dim=-1)
    torch.testing.assert_close(quantizer.codebook()[moved], z.expand(11, -1))


def pass_batches(quantizer, batches: list[torch.Tensor]) -> torch.Tensor:
    """A step for each batch; returns the codes as they are then."""
    for batch in batches:
        quantizer(batch)
        quantizer.end_step()
    return quantizer.embed.detach()


def pass_own_half(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(1)
    quantizer = QUANTIZERS["vq-revived"](dim=16)
    torch.save(pass_batches(quantizer, [batch[rank * 3 : rank * 3 + 3] for batch in few_vectors()]), f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def few_vectors() -> list[torch.Tensor]:
    """Batches of 6 clips in which most codes stay unused."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(6, 1, 16, generator=generator).expand(6, 4, 16) for _ in range(5)]


def test_two_processes_move_dead_codes_to_where_one_would_move_them(tmp_path):
    torch.multiprocessing.spawn(pass_own_half, args=(str(tmp_path),), nprocs=2)
    torch.manual_seed(1)
    quantizer = QUANTIZERS["vq-revived"](dim=16)
    before = quantizer.embed.detach().clone()
    together = pass_batches(quantizer, few_vectors())
    assert (together != before).any()
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / str(rank)), together)


def test_dead_codes_move_alike_in_one_batch_and_in_micro_batches():
    found = []
    for parts in (1, 2, 3):
        torch.manual_seed(1)
        quantizer = QUANTIZERS["vq-revived"](dim=16)
        for batch in few_vectors():
            for micro_batch in batch.chunk(parts):
                quantizer(micro_batch)
            quantizer.end_step()
        found.append(dict(quantizer.state_dict()))
    assert (found[0]["idle_steps"] > 0).any()
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(other[name], value), name


def test_evaluation_leaves_no_trace_in_what_a_step_has_seen():
    torch.manual_seed(1)
    quantizer = QUANTIZERS["vq-revived"](dim=16).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    for batch in few_vectors():
        quantizer(batch)
        quantizer.end_step()
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_finite_scalar_codes_are_a_lattice_that_indices_enumerate():
    quantizer = QUANTIZERS["fsq"](dim=16)
    codebook = quantizer.codebook()
    assert codebook.unique(dim=0).shape == (12, 2)
    assert torch.equal(quantizer._index((codebook * (quantizer.levels // 2)).round()), torch.arange(12))
    assert codebook.abs().max() == 1


def test_perplexity_counts_the_codes_in_use():
    assert perplexity(torch.tensor([5.0, 5.0, 5.0, 0.0])) == pytest.approx(3)
    assert perplexity(torch.tensor([9.0, 0.0])) == pytest.approx(1)
