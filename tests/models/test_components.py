import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from models.components.attention import Attention
from models.components.cosine_attention import COSINE_SCALE
from models.components.masking import halton_priority, hidden_counts, masked_share, passes, refine, training_mask
from models.components.position_generator import PositionGenerator
from models.components.positions import ContinuousPositionBias, alibi_slopes, causal_alibi
from models.components.random import gumbel, uniform
from models.interfaces import Sampling
from tests.models.builders import settle


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("norm_keys", [False, True])
def test_fused_attention_equals_the_written_out_formula(norm_keys, dim):
    torch.manual_seed(0)
    layer = settle(Attention(12, heads=3, dim_head=4, norm_keys=norm_keys))
    x, bias = torch.randn(2, 5, 5, 12), torch.randn(3, 5, 5)
    rows = x.transpose(1, 2) if dim == 1 else x
    normed = layer.norm(rows)
    q = layer.to_q(normed).unflatten(-1, (3, 4))
    k, v = layer.to_kv(normed if norm_keys else rows).unflatten(-1, (2, 3, 4)).unbind(3)
    q = q / q.norm(dim=-1, keepdim=True) * layer.q_scale
    k = k / k.norm(dim=-1, keepdim=True) * layer.k_scale
    weights = (COSINE_SCALE * torch.einsum("brihd,brjhd->brhij", q, k) + bias).softmax(-1)
    expected = layer.to_out(torch.einsum("brhij,brjhd->brihd", weights, v).flatten(3))
    expected = expected.transpose(1, 2) if dim == 1 else expected
    torch.testing.assert_close(layer(x, bias, dim), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_position_generator_adds_a_causally_padded_3d_convolution(num_frames):
    torch.manual_seed(0)
    layer = PositionGenerator(6)
    x = torch.randn(2, num_frames, 4, 3, 6)
    padded = F.pad(x.permute(0, 4, 1, 2, 3), (1, 1, 1, 1, 2, 0))
    expected = x + layer.dsconv(padded).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_position_bias_depends_on_the_offset_alone_and_matches_its_formula():
    torch.manual_seed(0)
    bias_of = ContinuousPositionBias(8, heads=2)
    bias = bias_of((3, 4)).view(2, 3, 4, 3, 4)
    torch.testing.assert_close(bias[:, 0, 0, 1, 2], bias[:, 1, 1, 2, 3])
    offset = torch.tensor([0.0 - 2, 1.0 - 0])  # query (0, 1), key (2, 0)
    value = torch.sign(offset) * torch.log(1 + offset.abs())
    for layer in bias_of.net:
        value = layer(value)
    torch.testing.assert_close(bias[:, 0, 1, 2, 0], value)


def test_alibi_slopes_are_those_of_the_paper():
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert len(alibi_slopes(6)) == 6
    mask = causal_alibi(3, 8)
    assert mask[0, 2].tolist() == [-1.0, -0.5, 0.0]
    assert mask[0, 0, 1] == -math.inf


def test_random_numbers_belong_to_the_clip_not_to_the_batch():
    seeds = torch.tensor([3, 2**62, 5])
    together = uniform(seeds, (4, 1), (6,))
    alone = torch.cat([uniform(seed[None], (4, 1), (6,)) for seed in seeds])
    assert torch.equal(together, alone)
    assert not torch.equal(together, uniform(seeds, (4, 2), (6,)))


def test_random_numbers_are_uniform_and_uncorrelated():
    numbers = uniform(torch.arange(100), (0,), (1000,))
    assert numbers.min() > 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.005 and abs(numbers.var() - 1 / 12) < 0.001
    assert torch.corrcoef(numbers).triu(1).abs().max() < 0.15
    noise = gumbel(torch.arange(100), (0,), (1000,))
    assert abs(noise.mean() - 0.5772) < 0.01  # Euler's constant


@pytest.mark.parametrize("schedule", ["cosine", "linear", "arccos"])
def test_masking_schedules_fall_from_one_to_zero(schedule):
    shares = [masked_share(i / 10, schedule) for i in range(11)]
    assert shares[0] == pytest.approx(1) and shares[-1] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in pairwise(shares))


def test_training_masks_cover_the_asked_rates():
    hidden = training_mask(torch.Size([2000, 40]), (0.5, 1.0), torch.arange(2000)).float().mean(1)
    assert abs(hidden.mean() - 0.75) < 0.01 and hidden.min() < 0.55 and hidden.max() > 0.95
    assert training_mask(torch.Size([3, 4]), (0.0, 0.0), torch.arange(3)).sum() == 0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "arccos"])
@pytest.mark.parametrize(("order", "noise"), [("confidence", 0.0), ("confidence", 4.5), ("halton", 0.0)])
def test_refinement_keeps_what_it_accepted_and_ends_with_nothing_hidden(schedule, order, noise):
    torch.manual_seed(0)
    sampling = Sampling(steps=4, schedule=schedule, temperature=1.0, noise=noise, order=order)
    seeds = torch.tensor([1, 2])
    tokens, hidden = torch.zeros(2, 2, 2, 3, dtype=torch.long), torch.ones(2, 2, 2, 3, dtype=torch.bool)
    for turn in passes(sampling, 12, tokens.device):
        before, open_before = tokens, hidden
        logits, is_last = torch.randn(2, 2, 2, 3, 5), bool(turn.number == 3)
        tokens, hidden = refine(logits, tokens, hidden, sampling, turn, seeds, frame=1, is_last=is_last)
        assert torch.equal(tokens[~open_before], before[~open_before])
        assert (hidden & ~open_before).sum() == 0
        assert (hidden.flatten(1).sum(1) < open_before.flatten(1).sum(1)).all()
    assert hidden.sum() == 0


def test_refinement_hides_the_least_sure_tokens_again():
    logits = torch.zeros(1, 1, 2, 2, 3)
    logits[..., 1] = torch.tensor([5.0, 1.0, 4.0, 2.0]).view(2, 2)
    assert _hidden_again(logits) == [False, True, False, True]


def test_of_equally_sure_tokens_the_first_are_hidden_again():
    logits = torch.zeros(1, 1, 2, 2, 3)
    logits[0, 0, 0, 0, 1] = 5.0
    assert _hidden_again(logits) == [False, True, True, False]


def _hidden_again(logits: torch.Tensor) -> list[bool]:
    """Which of four tokens the first of two passes hides again."""
    sampling, seeds = Sampling(steps=2, schedule="linear"), torch.tensor([0])
    tokens = torch.zeros(1, 1, 2, 2, dtype=torch.long)
    turn = passes(sampling, 4, tokens.device)[0]
    _, hidden = refine(logits, tokens, tokens == 0, sampling, turn, seeds, frame=1, is_last=False)
    return hidden.flatten().tolist()


def test_the_share_still_hidden_follows_the_schedule_and_falls_in_every_pass():
    assert hidden_counts(100, 4, "linear") == (75, 50, 25, 0)
    assert hidden_counts(100, 2, "cosine") == (70, 0)  # 100 · cos(π/4)
    assert hidden_counts(5, 5, "cosine") == (4, 3, 2, 1, 0)  # at least one more token in every pass
    assert hidden_counts(256, 1, "cosine") == (0,)


def test_a_halton_order_spreads_the_tokens_that_are_drawn_together():
    priority = halton_priority(1, 8, 8).view(8, 8)
    assert sorted(priority.flatten().tolist()) == list(range(-63, 1))
    first = (priority > -16).nonzero()  # a quarter of the tokens, in each quarter of the frame as many
    for rows in (first[:, 0] < 4, first[:, 0] >= 4):
        for columns in (first[:, 1] < 4, first[:, 1] >= 4):
            assert 3 <= int((rows & columns).sum()) <= 5
    two = halton_priority(2, 8, 8).view(2, 64)
    assert sorted(two.flatten().tolist()) == list(range(-127, 1))
    assert torch.equal(two[0].argsort(), priority.flatten().argsort())
