import pytest
import torch

from tests.models.builders import LAYOUTS, NUM_ACTIONS, clip, lam, settle


@pytest.fixture(params=LAYOUTS)
def model(request):
    torch.manual_seed(0)
    return lam(request.param)


def test_actions_are_in_range_one_for_each_transition(model):
    frames = clip().frames
    indices = model.eval().indices(frames)
    assert indices.shape == (2, 4)
    assert indices.min() >= 0 and indices.max() < NUM_ACTIONS
    vectors, output = model(frames)
    assert vectors.shape == (2, 4, 32) and output.loss.shape == ()


def test_an_action_is_named_from_its_own_transition_and_the_past(model):
    settle(model)
    frames = clip(num_frames=6).frames
    changed = frames.clone()
    changed[:, 4:] = 1 - changed[:, 4:]
    before, after = model.vectors(frames), model.vectors(changed)
    assert torch.equal(before[:, :3], after[:, :3])  # actions 0..2 lead to frames 1..3
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_the_future_reaches_the_decoder_through_the_action_code_alone(model):
    settle(model)
    frames = clip(num_frames=6).frames
    changed = frames.clone()
    changed[:, 4:] = 1 - changed[:, 4:]
    bias = model.spatial_bias(model.grid)
    actions = model.embed(torch.tensor([[0, 1, 2, 3, 4]] * 2))
    before = model._draw(model.patch_embedding(frames), actions, bias)
    after = model._draw(model.patch_embedding(changed), actions, bias)
    # Prediction i is of frame i+1 and may use frames 0..i: the one of frame 4 must not know the changed frame 4.
    assert torch.equal(before[:, :4], after[:, :4])
    other = model._draw(model.patch_embedding(frames), model.embed(torch.tensor([[0, 1, 2, 5, 4]] * 2)), bias)
    assert torch.equal(before[:, :3], other[:, :3])
    assert not torch.allclose(before[:, 3], other[:, 3])


def test_embedding_an_index_gives_the_vector_of_the_forward_pass(model):
    frames = clip().frames
    model.eval()
    vectors, _ = model(frames)
    torch.testing.assert_close(model.embed(model.indices(frames)), vectors)
