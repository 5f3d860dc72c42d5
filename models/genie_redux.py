"""The world model: a frozen tokenizer, a source of actions and a dynamics, composed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.interfaces import Clip, Observed, Rollout, Sampling, StepOutput


class WorldModel(nn.Module):
    """GenieRedux with `LatentActions`, GenieRedux-G with `RecordedActions`.

    tokenizer: finished, stays frozen and in eval mode whatever `train()` says.
    actions: an action source (`models.actions`).
    dynamics: a constructor that takes num_tokens, grid, codebook and action_dim (`models.dynamics`).
    """

    def __init__(self, *, tokenizer: nn.Module, actions: nn.Module, dynamics: Callable[..., nn.Module]):
        super().__init__()
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.actions = actions
        self.dynamics = dynamics(
            num_tokens=tokenizer.codebook_size,
            grid=tokenizer.grid,
            codebook=tokenizer.codebook(),
            action_dim=actions.dim,
        )
        self.image_size = tokenizer.image_size
        self.num_actions = actions.num_actions

    @property
    def is_latent(self) -> bool:
        """Whether the actions were learned from video alone."""
        return self.actions.is_latent

    def train(self, mode: bool = True) -> "WorldModel":
        super().train(mode)
        self.tokenizer.eval()
        return self

    def forward(self, clip: Clip, step: int) -> StepOutput:
        with torch.no_grad():
            tokens = clip.tokens if clip.tokens is not None else self.tokenizer.encode(clip.frames)
        vectors, action_output = self.actions(Observed(clip.frames, clip.actions), step)
        output = self.dynamics(tokens, vectors, clip.seeds, step)
        return StepOutput(output.loss + action_output.loss, output.logs | action_output.logs)

    @torch.no_grad()
    def infer(self, clip: Clip) -> Tensor:
        """Action indices of every transition, (B, T-1): read off the true frames by the LAM, or as recorded."""
        return self.actions.infer(Observed(clip.frames, clip.actions))

    @torch.no_grad()
    def rollout(self, prompt: Tensor, actions: Tensor, *, sampling: Sampling, seeds: Tensor, chunk: int = 1) -> Rollout:
        """Dream on from real frames.

        prompt: (B, P, C, H, W) float in [0, 1]. actions: (B, P-1+K) indices, `actions[:, t]` leads from frame t to t+1;
        K frames are predicted, `chunk` together: 1 is autoregressive, K is one-go. seeds: (B,), all noise follows from
        them. Returns K unclamped frames and the tokens of all P+K.
        """
        num_given = prompt.shape[1]
        num_new = actions.shape[1] - num_given + 1
        if num_new < 1:
            raise ValueError(f"{actions.shape[1]} actions for {num_given} given frames leave no frame to predict")
        tokens = self.tokenizer.encode(prompt)
        vectors = self.actions.embed(actions)
        for start in range(num_given, num_given + num_new, chunk):
            count = min(chunk, num_given + num_new - start)
            new = self.dynamics.sample(
                tokens, vectors[:, : start + count - 1], num_new=count, sampling=sampling, seeds=seeds
            )
            tokens = torch.cat([tokens, new], dim=1)
        return Rollout(self.tokenizer.decode(tokens)[:, num_given:], tokens)
