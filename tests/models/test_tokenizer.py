import pytest
import torch

from tests.models.builders import LAYOUTS, QUANTIZERS, clip, settle, tokenizer


@pytest.fixture(params=[(quantizer, layout) for quantizer in QUANTIZERS for layout in LAYOUTS], ids="-".join)
def model(request):
    torch.manual_seed(0)
    return tokenizer(*request.param)


def test_tokens_are_in_range_and_shapes_round_trip(model):
    frames = clip().frames
    tokens = model.eval().encode(frames)
    assert tokens.shape == (2, 5, 4, 4) and tokens.dtype == torch.int64
    assert tokens.min() >= 0 and tokens.max() < model.codebook_size
    assert model.decode(tokens).shape == frames.shape


def test_decoding_tokens_gives_the_reconstruction_that_training_scores(model):
    batch = clip()
    model.eval()
    error = (model.decode(model.encode(batch.frames)) - batch.frames).square().mean()
    torch.testing.assert_close(model(batch, 0).logs["reconstruction"], error)


def test_encoder_and_decoder_cannot_see_the_future(model):
    settle(model)
    frames = clip(num_frames=6).frames
    changed = frames.clone()
    changed[:, 3:] = 1 - changed[:, 3:]
    assert torch.equal(model.encode(frames)[:, :3], model.encode(changed)[:, :3])
    assert not torch.equal(model.encode(frames)[:, 3:], model.encode(changed)[:, 3:])
    tokens = model.encode(frames)
    other = tokens.clone()
    other[:, 3:] = (other[:, 3:] + 1) % model.codebook_size
    assert torch.equal(model.decode(tokens)[:, :3], model.decode(other)[:, :3])
    assert not torch.allclose(model.decode(tokens)[:, 3:], model.decode(other)[:, 3:])


def test_gradients_reach_every_parameter(model):
    model(clip(), 0).loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # At the start every query and key is uninformative for the bias' last shift: softmax ignores a constant.
    assert [name for name in silent if not name.startswith("spatial_bias.net.2.bias")] == []


def test_loss_is_the_mean_of_the_clips_own_losses(model):
    model.eval()
    together = model(clip(batch=3), 0).loss
    frames = clip(batch=3).frames
    alone = [model(clip(batch=1)._replace(frames=frames[i : i + 1]), 0).loss for i in range(3)]
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_frames_of_another_size_are_named(model):
    with pytest.raises(ValueError, match=r"frames are 20x16, the tokenizer expects 16x16.*dataset_name"):
        model.encode(torch.rand(1, 2, 3, 20, 16))


def test_a_patch_size_that_does_not_divide_is_named():
    from tests.models import builders

    with pytest.raises(ValueError, match="image_size 18x16 is not a multiple of patch_size 4"):
        builders.STViViT(
            **builders.SIZES | {"image_size": (18, 16)},
            **builders.LEAN,
            encoder_blocks=1,
            decoder_blocks=1,
            norm_pixels=True,
            reconstruction_loss="mse",
            quantizer=QUANTIZERS["vq"],
        )
