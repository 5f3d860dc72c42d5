"""The world model: a frozen tokenizer, a source of actions and a dynamics, composed."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.graphs import FrameGraphs
from models.interfaces import Clip, Observed, Rollout, Sampling, StepOutput
from models.session import MAX_NEW, Session


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
        self.graphs: FrameGraphs | None = None  # by which single frames are drawn, see `use_graphs`

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

    def use_graphs(self, graphs: FrameGraphs | None) -> None:
        """Draw frame after frame by recorded graphs from now on, in sessions and rollouts; None: no longer.

        Only for finished weights, where they will stay: neither training nor `to` may change them afterwards.
        """
        self.graphs = graphs

    @property
    def extend(self) -> Callable[..., Tensor]:
        """`MaskGIT.extend` of the dynamics, by graphs where they are used."""
        return self.dynamics.extend if self.graphs is None else self.graphs.extend

    @property
    def decode_next(self) -> Callable[..., Tensor]:
        """`STViViT.decode_next` of the tokenizer, by graphs where they are used."""
        return self.tokenizer.decode_next if self.graphs is None else self.graphs.decode_next

    @torch.no_grad()
    def infer(self, clip: Clip) -> Tensor:
        """Action indices of every transition, (B, T-1): read off the true frames by the LAM, or as recorded."""
        return self.actions.infer(Observed(clip.frames, clip.actions))

    @torch.no_grad()
    def infer_latents(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """What `infer` says of a latent world, and the vectors before quantisation that say it, (B, T-1, D)."""
        return self.actions.infer_latents(Observed(clip.frames, clip.actions))

    @torch.no_grad()
    def start(
        self,
        prompt: Tensor,
        actions: Tensor | None = None,
        *,
        sampling: Sampling,
        seeds: Tensor,
        window: int,
        max_rewind: int = 0,
    ) -> Session:
        """Begin dreams that go on frame by frame.

        prompt: (B, P, C, H, W) float in [0, 1]. actions: (B, P-1) indices; None where P is 1, and for a world that
        reads them off the frames. seeds: (B,), all noise follows from them. window: the latest frames that attention
        over time reads; a model knows no more than it was trained on. max_rewind: frames that can be taken back.
        """
        if actions is None:
            if prompt.shape[1] == 1:
                actions = torch.zeros(len(prompt), 0, dtype=torch.long, device=prompt.device)
            else:
                actions = self.actions.infer(Observed(prompt, None))
        if actions.shape != (len(prompt), prompt.shape[1] - 1):
            raise ValueError(f"{prompt.shape[1]} given frames come with {tuple(actions.shape)} actions (clips, frames)")
        self.dynamics.rule.check(sampling, 1)
        return Session(self, prompt, actions, sampling=sampling, seeds=seeds, window=window, max_rewind=max_rewind)

    @torch.no_grad()
    def rollout(
        self,
        prompt: Tensor,
        actions: Tensor,
        *,
        sampling: Sampling,
        seeds: Tensor,
        chunk: int = 1,
        window: int | None = None,
        prompt_tokens: Tensor | None = None,
    ) -> Rollout:
        """Dream on from real frames.

        prompt: (B, P, C, H, W) float in [0, 1]. actions: (B, P-1+K) indices, `actions[:, t]` leads from frame t to t+1;
        K frames are predicted, `chunk` together: 1 is autoregressive, K is one-go. seeds: (B,), all noise follows from
        them. window: frames that attention over time reads, None for all. prompt_tokens: (B, P, h, w) where they are at
        hand, which spares encoding the prompt. Returns K unclamped frames, decoded in full precision also where
        autocast is on, and the tokens of all P+K.
        """
        num_given = prompt.shape[1]
        num_new = actions.shape[1] - num_given + 1
        if num_new < 1:
            raise ValueError(f"{actions.shape[1]} actions for {num_given} given frames leave no frame to predict")
        self.dynamics.check_length(num_given + num_new, "eval.sample_num_frames")
        tokens = self.tokenizer.encode(prompt) if prompt_tokens is None else prompt_tokens
        vectors = self.actions.embed(actions)
        if chunk >= num_new:
            common = {"num_new": num_new, "sampling": sampling, "seeds": seeds, "window": window}
            tokens = torch.cat([tokens, self.dynamics.sample(tokens, vectors, **common)], dim=1)
        else:
            tokens = self._continue(tokens, vectors, chunk, window, sampling=sampling, seeds=seeds)
        with torch.autocast(tokens.device.type, enabled=False):
            frames = self.tokenizer.decode(tokens, window=window)
        return Rollout(frames[:, num_given:], tokens)

    def _continue(
        self, tokens: Tensor, vectors: Tensor, chunk: int, window: int | None, *, sampling: Sampling, seeds: Tensor
    ) -> Tensor:
        """Tokens (B, P, h, w) and those of the frames that follow, `chunk` by `chunk`; each frame is read once."""
        batch, num_given, *grid = tokens.shape
        num_frames = vectors.shape[1] + 1
        window = min(window or num_frames, num_frames)
        cache = self.dynamics.start(batch, tuple(grid), window=window, max_new=max(MAX_NEW, chunk + 1), max_rewind=0)
        arriving = F.pad(vectors, (0, 0, 1, 0))
        for start in range(num_given, num_frames, chunk):
            count = min(chunk, num_frames - start)
            new = self.extend(
                tokens[:, cache.length :],
                arriving[:, cache.length : start + count],
                cache,
                num_new=count,
                sampling=sampling,
                seeds=seeds,
                frame=start,
            )
            tokens = torch.cat([tokens, new], dim=1)
        return tokens
