"""What every world model keeps, whatever its action source, conditioning and prediction rule."""

import pytest
import torch
import torch.nn.functional as F

from models.genie_redux import WorldModel
from models.interfaces import Sampling
from tests.models import builders
from tests.models.builders import NUM_ACTIONS, WORLDS, clip, settle


@pytest.fixture(params=WORLDS)
def world(request):
    torch.manual_seed(0)
    return builders.world(request.param)


def logits_for_frame(world, tokens, actions, frame):
    """Logits that predict `frame`, its own tokens hidden."""
    hidden = tokens.clone()
    hidden[:, frame] = world.dynamics.mask_id
    inputs, conditions = world.dynamics.rule.inputs(hidden, world.actions.embed(actions))
    position = frame if inputs.shape[1] == tokens.shape[1] else frame - 1
    return world.dynamics.logits(inputs, conditions)[:, position]


def test_dynamics_cannot_see_the_future(world):
    settle(world)
    tokens = torch.randint(12, (2, 6, 4, 4))
    actions = torch.randint(NUM_ACTIONS, (2, 5))
    later = tokens.clone()
    later[:, 4:] = (later[:, 4:] + 1) % 12
    later_actions = actions.clone()
    later_actions[:, 3:] = (later_actions[:, 3:] + 1) % NUM_ACTIONS
    with torch.no_grad():
        before = logits_for_frame(world, tokens, actions, 3)
        assert torch.equal(before, logits_for_frame(world, later, later_actions, 3))
        assert not torch.allclose(before, logits_for_frame(world, later.roll(3, 1), actions, 3))


def test_the_action_that_leads_to_a_frame_changes_its_prediction(world):
    settle(world)
    tokens = torch.randint(12, (2, 4, 4, 4))
    actions = torch.zeros(2, 3, dtype=torch.long)
    with torch.no_grad():
        before = logits_for_frame(world, tokens, actions, 3)
        actions[:, 2] = 3
        assert not torch.allclose(before, logits_for_frame(world, tokens, actions, 3))


def test_a_rollout_predicts_every_frame_after_the_prompt(world):
    world.eval()
    batch = clip(num_frames=6)
    for chunk in (1, 2, 4):
        result = world.rollout(batch.frames[:, :2], batch.actions, sampling=Sampling(), seeds=batch.seeds, chunk=chunk)
        assert result.frames.shape == (2, 4, 3, 16, 16)
        assert torch.equal(result.tokens[:, :2], world.tokenizer.encode(batch.frames[:, :2]))
        assert result.tokens.min() >= 0 and result.tokens.max() < 12


def test_the_same_seeds_give_the_same_rollout_whatever_the_batch(world):
    settle(world)
    batch = clip(batch=3, num_frames=5)
    sampling = Sampling(temperature=1.0, noise=1.0, steps=2)
    together = world.rollout(batch.frames[:, :1], batch.actions, sampling=sampling, seeds=batch.seeds, chunk=2)
    for i in range(3):
        part = slice(i, i + 1)
        alone = world.rollout(
            batch.frames[part, :1], batch.actions[part], sampling=sampling, seeds=batch.seeds[part], chunk=2
        )
        assert torch.equal(alone.tokens, together.tokens[part])
    other = world.rollout(batch.frames[:, :1], batch.actions, sampling=sampling, seeds=batch.seeds + 9, chunk=2)
    assert not torch.equal(other.tokens, together.tokens)


def test_a_longer_rollout_starts_with_the_shorter_one(world):
    settle(world)
    batch = clip(num_frames=6)
    sampling = Sampling(temperature=1.0)
    long = world.rollout(batch.frames[:, :1], batch.actions, sampling=sampling, seeds=batch.seeds)
    short = world.rollout(batch.frames[:, :1], batch.actions[:, :2], sampling=sampling, seeds=batch.seeds)
    assert torch.equal(long.tokens[:, :3], short.tokens)


def test_a_training_step_leaves_the_frozen_tokenizer_bit_equal(world):
    before = {name: value.clone() for name, value in world.tokenizer.state_dict().items()}
    world.train()
    assert not world.tokenizer.training
    trainable = [p for p in world.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.1)
    world(clip(), 0).loss.backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in world.tokenizer.state_dict().items())


def test_gradients_reach_every_trainable_parameter(world):
    world.train()
    settle_modulations = [p for name, p in world.named_parameters() if "modulations" in name]
    with torch.no_grad():
        for parameter in settle_modulations:
            parameter.add_(0.1)
    world(clip(), 0).loss.backward()
    silent = [
        n for n, p in world.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert [name for name in silent if not name.endswith("spatial_bias.net.2.bias")] == []


def test_loss_is_the_mean_of_the_clips_own_losses(world):
    world.eval()
    batch = clip(batch=3)
    alone = [
        world(
            batch._replace(
                frames=batch.frames[i : i + 1], actions=batch.actions[i : i + 1], seeds=batch.seeds[i : i + 1]
            ),
            0,
        ).loss
        for i in range(3)
    ]
    torch.testing.assert_close(world(batch, 0).loss, torch.stack(alone).mean())


def test_inferred_actions_are_recorded_ones_or_read_off_the_frames(world):
    world.eval()
    batch = clip()
    actions = world.infer(batch)
    assert actions.shape == (2, 4) and actions.max() < world.num_actions
    if world.is_latent:
        assert torch.equal(actions, world.infer(batch._replace(actions=None)))
    else:
        assert torch.equal(actions, batch.actions)


def test_one_clip_can_be_learned_by_heart(world):
    torch.manual_seed(0)
    tokens = torch.randint(12, (1, 4, 4, 4))
    batch = clip(batch=1, num_frames=4)._replace(tokens=tokens)
    world.train()
    optimizer = torch.optim.AdamW([p for p in world.parameters() if p.requires_grad], lr=1e-2)
    for step in range(60):
        output = world(batch._replace(seeds=torch.tensor([step])), step)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert output.logs["cross_entropy"] < 0.3


def test_several_steps_frame_by_frame_are_refused_by_the_next_rule_and_refine_in_place():
    batch = clip()
    sampling = Sampling(steps=3)
    refused = builders.world("guided-published").eval()
    with pytest.raises(ValueError, match=r"inference_steps is 3.*inference_steps=1"):
        refused.rollout(batch.frames[:, :1], batch.actions, sampling=sampling, seeds=batch.seeds)
    refined = settle(builders.world("guided-in-place"))
    three = refined.rollout(batch.frames[:, :1], batch.actions, sampling=sampling, seeds=batch.seeds)
    one = refined.rollout(batch.frames[:, :1], batch.actions, sampling=Sampling(), seeds=batch.seeds)
    assert not torch.equal(three.tokens, one.tokens)


def test_published_loss_pools_the_masked_tokens():
    torch.manual_seed(0)
    model = builders.dynamics(loss_reduction="pooled")(
        num_tokens=12, grid=(4, 4), codebook=torch.rand(12, 8), action_dim=7
    )
    tokens, actions = torch.randint(12, (3, 4, 4, 4)), torch.rand(3, 3, 7)
    lesson = model.rule.lesson(tokens, actions, torch.arange(3), model.mask_id)
    logits = model.logits(lesson.inputs, actions)
    expected = F.cross_entropy(logits[lesson.asked], lesson.targets[lesson.asked])
    torch.testing.assert_close(model(tokens, actions, torch.arange(3), 0).loss, expected)


def test_a_context_beyond_the_position_table_is_named():
    world = builders.world("guided-published").eval()
    with pytest.raises(ValueError, match=r"9 frames of context need dynamics.max_seq_len=144, this model has 128"):
        batch = clip(num_frames=10)
        world.rollout(batch.frames[:, :1], batch.actions, sampling=Sampling(), seeds=batch.seeds)


def test_missing_actions_are_named():
    with pytest.raises(ValueError, match="no recorded actions; train genie_redux"):
        builders.world("guided-published")(clip()._replace(actions=None), 0)


def test_world_takes_its_sizes_from_its_parts():
    tokenizer = builders.tokenizer("fsq")
    world = WorldModel(tokenizer=tokenizer, actions=builders.actions("latent"), dynamics=builders.dynamics("add"))
    assert world.dynamics.num_tokens == tokenizer.codebook_size
    assert world.num_actions == NUM_ACTIONS and world.image_size == (16, 16)
