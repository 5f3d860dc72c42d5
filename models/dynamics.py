"""MaskGIT dynamics: the next frame's tokens from the tokens so far and an action."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components.cache import TransformerCache
from models.components.masking import Pass, passes, refine, training_mask
from models.components.positions import ContinuousPositionBias
from models.components.st_transformer import STTransformer
from models.interfaces import Sampling, StepOutput


class Lesson(NamedTuple):
    """What one training pass shows and asks."""

    inputs: Tensor  # (B, L, h, w), some tokens replaced by the mask id
    actions: Tensor  # (B, L, A), the action that each input frame is conditioned on
    targets: Tensor  # (B, L, h, w)
    asked: Tensor  # (B, L, h, w) bool: where the loss counts


class DynamicsCache(NamedTuple):
    """What `MaskGIT.extend` remembers of a batch of dreams."""

    transformer: TransformerCache
    embeddings: Tensor  # (K + 1, dim), which follow from the weights

    @property
    def length(self) -> int:
        """Frames in the cache."""
        return self.transformer.length

    def fork(self) -> "DynamicsCache":
        return self._replace(transformer=self.transformer.fork())

    def select(self, rows: Tensor) -> "DynamicsCache":
        return self._replace(transformer=self.transformer.select(rows))


class NextFrameRule:
    """The published GenieRedux rule: the logits at an input frame's positions predict the following frame's tokens.

    loss_on: "masked" counts the loss only where the input token was hidden, as published; "all" everywhere.
    The published sampler makes one pass. More than one pass frame by frame is an error: the new frame's tokens are
    never an input, so nothing would change.
    """

    def __init__(self, mask_rate: tuple[float, float], loss_on: str):
        self.mask_rate = mask_rate
        self.loss_on = loss_on

    def lesson(self, tokens: Tensor, actions: Tensor, seeds: Tensor, mask_id: int) -> Lesson:
        visible = tokens[:, :-1]
        hidden = training_mask(visible.shape, self.mask_rate, seeds)
        asked = hidden if self.loss_on == "masked" else torch.ones_like(hidden)
        return Lesson(visible.masked_fill(hidden, mask_id), actions, tokens[:, 1:], asked)

    def check(self, sampling: Sampling, num_new: int) -> None:
        if sampling.steps > 1 and num_new == 1:
            raise ValueError(
                f"eval.inference_steps is {sampling.steps}, but dynamics.rule=next makes one pass a frame: "
                "set eval.inference_steps=1, or train with dynamics.rule=in_place"
            )

    def inputs(self, tokens: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """What the network reads to predict the last frames of `tokens` (B, L, h, w), and the action at each frame."""
        return tokens[:, :-1], actions

    @staticmethod
    def inputs_after(tokens: Tensor, arriving: Tensor) -> tuple[Tensor, Tensor]:
        """`inputs` for the last frames of a clip: arriving (B, L, A) are the actions that led to these L frames."""
        return tokens[:, :-1], arriving[:, 1:]

    @staticmethod
    def conditions_of_known(arriving: Tensor) -> Tensor:
        """The actions that L known input frames are conditioned on, of those that led to them and to the next one."""
        return arriving[:, 1:]

    @staticmethod
    def input_frames(num_frames: int) -> int:
        """Frames that the network reads of a clip of `num_frames`."""
        return num_frames - 1


class InPlaceRule:
    """Genie's rule: the new frame's hidden tokens are inputs too, and passes refine them.

    Input frame t is conditioned on the action that led to it; frame 0 on none. Only frames 1.. are hidden and asked.
    """

    def __init__(self, mask_rate: tuple[float, float]):
        self.mask_rate = mask_rate

    def lesson(self, tokens: Tensor, actions: Tensor, seeds: Tensor, mask_id: int) -> Lesson:
        hidden = training_mask(tokens.shape, self.mask_rate, seeds)
        hidden[:, 0].zero_()
        return Lesson(tokens.masked_fill(hidden, mask_id), self._arriving(actions), tokens, hidden)

    def check(self, sampling: Sampling, num_new: int) -> None:
        pass

    def inputs(self, tokens: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        return tokens, self._arriving(actions)

    @staticmethod
    def inputs_after(tokens: Tensor, arriving: Tensor) -> tuple[Tensor, Tensor]:
        return tokens, arriving

    @staticmethod
    def conditions_of_known(arriving: Tensor) -> Tensor:
        return arriving[:, :-1]

    @staticmethod
    def input_frames(num_frames: int) -> int:
        return num_frames

    @staticmethod
    def _arriving(actions: Tensor) -> Tensor:
        return F.pad(actions, (0, 0, 1, 0))


class MaskGIT(nn.Module):
    """Token transformer with two prediction rules (see `NextFrameRule`, `InPlaceRule`).

    num_tokens, grid (h, w), codebook (K, code_dim), action_dim come from the tokenizer and the action source. grid is
    None where the tokenizer takes frames of any size.
    max_seq_len: rows of the absolute position table, h·w a frame; null for no table and no limit of context.
    conditioning: "add" the action to every token at the input (published with latent actions), "concat" it (published
        with recorded ones; widens the network), or "film": it scales and shifts the stream before every block.
    token_input: "learned" embedding of the token id, its "codes" vector projected, or "both".
    token_output: "linear" scores (published), or "tied": the dot product with the token's own input embedding, which
        makes copying the last frame the starting point of the next rule.
    embedding_gradient: factor on the gradient that reaches the embeddings (published 0.1).
    loss_reduction: "clip" averages per clip, so N processes compute one joint batch; "pooled" over all asked tokens of
        the batch, as published.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        grid: tuple[int, int] | None,
        codebook: Tensor,
        action_dim: int,
        dim: int,
        heads: int,
        dim_head: int,
        blocks: int,
        ff_mult: float,
        feed_forwards: str,
        norm_keys: bool,
        max_seq_len: int | None,
        conditioning: str,
        rule: str,
        mask_rate: tuple[float, float],
        loss_on: str,
        loss_reduction: str,
        token_input: str,
        token_output: str,
        embedding_gradient: float,
    ):
        super().__init__()
        _check_choice("conditioning", conditioning, ("add", "concat", "film"))
        _check_choice("rule", rule, ("next", "in_place"))
        _check_choice("loss_on", loss_on, ("masked", "all"))
        _check_choice("loss_reduction", loss_reduction, ("clip", "pooled"))
        _check_choice("token_input", token_input, ("learned", "codes", "both"))
        _check_choice("token_output", token_output, ("linear", "tied"))
        low, high = mask_rate
        if not 0 <= low <= high <= 1:
            raise ValueError(f"dynamics.mask_rate is {list(mask_rate)}, expected 0 <= low <= high <= 1")
        self.num_tokens = num_tokens
        self.mask_id = num_tokens
        self.grid = None if grid is None else tuple(grid)
        self.conditioning = conditioning
        self.rule = NextFrameRule((low, high), loss_on) if rule == "next" else InPlaceRule((low, high))
        self.loss_reduction = loss_reduction
        self.embedding_gradient = embedding_gradient
        self.token_emb = nn.Embedding(num_tokens + 1, dim)
        self.code_projection = None
        if token_input in ("codes", "both"):
            self.code_projection = nn.Linear(codebook.shape[1], dim)
            # Follows from the tokenizer, so no file stores it. The mask id has no code: a row of zeros.
            self.register_buffer("codes", F.pad(codebook.detach().clone().float(), (0, 0, 0, 1)), persistent=False)
        self.pos_emb = nn.Embedding(max_seq_len, dim) if max_seq_len is not None else None
        width = dim + action_dim if conditioning == "concat" else dim
        self.action_projection = None
        if conditioning == "film" or (conditioning == "add" and action_dim != dim):
            self.action_projection = nn.Linear(action_dim, dim)
        self.spatial_bias = ContinuousPositionBias(dim_head, heads)
        self.transformer = STTransformer(
            width,
            heads,
            dim_head,
            blocks,
            ff_mult,
            feed_forwards=feed_forwards,
            norm_keys=norm_keys,
            modulation_dim=dim if conditioning == "film" else None,
        )
        if token_output == "linear":
            self.to_logits = nn.Linear(width, num_tokens)
        else:
            self.to_embedding = nn.Linear(width, dim, bias=False)
            nn.init.eye_(self.to_embedding.weight)
        self.token_output = token_output
        self.max_seq_len = max_seq_len

    @property
    def context(self) -> int | None:
        """Input frames that the position table allows; None for any number, or where frames may have any size."""
        if self.max_seq_len is None or self.grid is None:
            return None
        return self.max_seq_len // (self.grid[0] * self.grid[1])

    def check_length(self, num_frames: int, key: str) -> None:
        """Raise ValueError, naming the setting `key`, where clips of so many frames exceed the position table."""
        if self.grid is not None:
            self._check_context(self.rule.input_frames(num_frames), self.grid, key)

    def _check_context(self, num_frames: int, grid: tuple[int, int], key: str) -> None:
        needed = num_frames * grid[0] * grid[1]
        if self.max_seq_len is not None and needed > self.max_seq_len:
            raise ValueError(
                f"{num_frames} frames of context need dynamics.max_seq_len={needed}, this model has "
                f"{self.max_seq_len}; ask for fewer frames with {key}"
            )

    def forward(self, tokens: Tensor, actions: Tensor, seeds: Tensor, step: int) -> StepOutput:
        """tokens (B, T, h, w); actions (B, T-1, A). Cross-entropy on the asked tokens, in nats."""
        lesson = self.rule.lesson(tokens, actions, seeds, self.mask_id)
        logits = self.logits(lesson.inputs, lesson.actions)
        losses = F.cross_entropy(logits.flatten(0, -2).float(), lesson.targets.flatten(), reduction="none")
        losses = losses.view_as(lesson.targets).flatten(1)
        asked = lesson.asked.flatten(1)
        if self.loss_reduction == "clip":
            loss = ((losses * asked).sum(1) / asked.sum(1).clamp(min=1)).mean()
        else:
            loss = (losses * asked).sum() / asked.sum().clamp(min=1)
        right = (logits.detach().argmax(-1) == lesson.targets).flatten(1) & asked
        accuracy = right.sum() / asked.sum().clamp(min=1)
        return StepOutput(loss, {"cross_entropy": loss.detach(), "token_accuracy": accuracy})

    def logits(self, inputs: Tensor, actions: Tensor, *, window: int | None = None) -> Tensor:
        """inputs (B, L, h, w) token or mask ids, actions (B, L, A) one for each input frame -> (B, L, h, w, K).

        window: input frames that attention over time reads; None for all.
        """
        self._check_context(inputs.shape[1], tuple(inputs.shape[2:]), "eval.sample_num_frames")
        embeddings = self._embeddings()
        positions = None if self.pos_emb is None else self.pos_emb.weight[: inputs[0].numel()]
        x, condition = self._embed(inputs, actions, embeddings, positions)
        features = self.transformer(x, self.spatial_bias(tuple(inputs.shape[2:])), condition, window=window)
        return self._scores(features, embeddings)

    def _embeddings(self) -> Tensor:
        """The vector of each token and of the mask, (K + 1, dim)."""
        if self.code_projection is None:
            return self.token_emb.weight
        return self.token_emb.weight + self.code_projection(self.codes)

    def _embed(
        self, inputs: Tensor, actions: Tensor, embeddings: Tensor, positions: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The transformer's input and condition; positions: rows of the position table, one for each of L·h·w."""
        x = F.embedding(inputs, embeddings)
        if positions is not None:
            x = x + positions.view(*inputs.shape[1:], -1)
        if self.embedding_gradient != 1:
            x = x * self.embedding_gradient + x.detach() * (1 - self.embedding_gradient)
        if self.action_projection is not None:
            actions = self.action_projection(actions)
        condition = None
        if self.conditioning == "add":
            x = x + actions[:, :, None, None]
        elif self.conditioning == "concat":
            x = torch.cat([x, actions[:, :, None, None].expand(*x.shape[:-1], -1).to(x.dtype)], dim=-1)
        else:
            condition = F.silu(actions)
        return x, condition

    def _scores(self, features: Tensor, embeddings: Tensor) -> Tensor:
        if self.token_output == "linear":
            return self.to_logits(features)
        return self.to_embedding(features) @ embeddings[:-1].T / embeddings.shape[-1] ** 0.5

    @torch.no_grad()
    def sample(
        self,
        tokens: Tensor,
        actions: Tensor,
        *,
        num_new: int,
        sampling: Sampling,
        seeds: Tensor,
        window: int | None = None,
    ) -> Tensor:
        """Tokens of the next `num_new` frames, drawn together: (B, num_new, h, w).

        tokens (B, P, h, w) known; actions (B, P-1+num_new, A). `num_new=1` frame after frame is autoregressive,
        all frames at once is one-go. With the next rule, one pass and temperature 0 this is the published generation.
        """
        self.rule.check(sampling, num_new)
        batch, past = tokens.shape[:2]
        new = torch.full((batch, num_new, *tokens.shape[2:]), self.mask_id, device=tokens.device)
        hidden = torch.ones_like(new, dtype=torch.bool)
        turns = passes(sampling, new[0].numel(), new.device)
        for turn in turns:
            inputs, conditions = self.rule.inputs(torch.cat([tokens, new], dim=1), actions)
            logits = self.logits(inputs, conditions, window=window)[:, -num_new:]
            is_last = turn is turns[-1]
            drawn, hidden = refine(logits, new, hidden, sampling, turn, seeds, frame=past, is_last=is_last)
            new = drawn.masked_fill(hidden, self.mask_id)
        return new

    # ------------------------------------------------------------------------------------------------ frame after frame

    def start(self, batch: int, grid: tuple[int, int], *, window: int, max_new: int, max_rewind: int) -> DynamicsCache:
        """A cache without frames for `extend`; the sizes are those of `TransformerCache`."""
        sizes = {"window": window, "max_new": max_new, "max_rewind": max_rewind}
        cache = self.transformer.start(batch, tuple(grid), self.spatial_bias(tuple(grid)), **sizes)
        return DynamicsCache(cache, self._embeddings())

    @torch.no_grad()
    def extend(
        self,
        tokens: Tensor,
        arriving: Tensor,
        cache: DynamicsCache,
        *,
        num_new: int,
        sampling: Sampling,
        seeds: Tensor,
        frame: int,
    ) -> Tensor:
        """What `sample` draws for the next `num_new` frames, (B, num_new, h, w), at the cost of the new frames alone.

        tokens: (B, m, h, w), the known frames that are not in the cache yet; they are afterwards. arriving: (B,
        m + num_new, A), the actions that led to these frames and to the new ones, zeros where none did. frame: the
        number of the first new frame, which keys the noise.
        """
        self.rule.check(sampling, num_new)
        tokens, arriving = self.catch_up(tokens, arriving, cache)
        self.draft(tokens, cache, self.rule.input_frames(1 + num_new))
        new = tokens.new_empty(len(tokens), num_new, *tokens.shape[2:])
        hidden = torch.empty_like(new, dtype=torch.bool)
        now, turns = cache.transformer.now(), passes(sampling, new[0].numel(), new.device)
        for turn in turns:
            ends = {"is_first": turn is turns[0], "is_last": turn is turns[-1]}
            common = {"now": now, "sampling": sampling, "turn": turn, "seeds": seeds, "frame": frame}
            new, hidden = self.refine_next(tokens, arriving, new, hidden, cache, **common, **ends)
        cache.transformer.commit(1)
        return new

    def catch_up(self, tokens: Tensor, arriving: Tensor, cache: DynamicsCache) -> tuple[Tensor, Tensor]:
        """Put known frames into the cache, as many at a time as it takes; the last is left, with its actions.

        Arguments as in `extend`.
        """
        while (left := tokens.shape[1]) > 1:
            count = min(left - 1, cache.transformer.max_new)
            self.draft(tokens, cache, count)
            self.remember(tokens[:, :count], arriving[:, : count + 1], cache, now=cache.transformer.now())
            cache.transformer.commit(count)
            tokens, arriving = tokens[:, count:], arriving[:, count:]
        return tokens, arriving

    def draft(self, tokens: Tensor, cache: DynamicsCache, count: int) -> None:
        """Announce passes over the next `count` frames, of as many tokens as those of `tokens` (B, m, h, w)."""
        self._check_context(cache.length + count, tuple(tokens.shape[2:]), "eval.sample_num_frames")
        cache.transformer.draft(count)

    def remember(self, tokens: Tensor, arriving: Tensor, cache: DynamicsCache, *, now: Tensor) -> None:
        """A pass over known frames (B, n, h, w) from the time `now` () on; arriving: (B, n + 1, A).

        Reads nothing but tensors, so that a graph can record it.
        """
        times = cache.transformer.times(now, tokens.shape[1])
        self._extended(tokens, self.rule.conditions_of_known(arriving), cache, times)

    def refine_next(
        self,
        tokens: Tensor,
        arriving: Tensor,
        new: Tensor,
        hidden: Tensor,
        cache: DynamicsCache,
        *,
        now: Tensor,
        sampling: Sampling,
        turn: Pass,
        seeds: Tensor,
        frame: int | Tensor,
        is_first: bool,
        is_last: bool,
    ) -> tuple[Tensor, Tensor]:
        """One pass over the new frames: their tokens and which of them are hidden, both (B, num_new, h, w).

        tokens: (B, 1, h, w), the last known frame, at the time `now` (). arriving: (B, 1 + num_new, A). new and hidden
        are those of the pass before; the first pass hides all. Reads nothing but tensors and what a sampling has kinds
        of (see `refine`), so that a graph can record it.
        """
        if is_first:
            new, hidden = torch.full_like(new, self.mask_id), torch.ones_like(hidden)
        num_new = new.shape[1]
        inputs, conditions = self.rule.inputs_after(torch.cat([tokens, new], dim=1), arriving)
        # Frames before the new ones' own read nothing that a later pass changes.
        skipped = 0 if is_first else inputs.shape[1] - num_new
        times = cache.transformer.times(now, inputs.shape[1] - skipped, skipped=skipped)
        features = self._extended(inputs[:, skipped:], conditions[:, skipped:], cache, times)
        logits = self._scores(features[:, -num_new:], cache.embeddings)
        drawn, hidden = refine(logits, new, hidden, sampling, turn, seeds, frame, is_last=is_last)
        return drawn.masked_fill(hidden, self.mask_id), hidden

    def _extended(self, inputs: Tensor, actions: Tensor, cache: DynamicsCache, times: Tensor) -> Tensor:
        """The transformer's features of the frames at `times` (n,), (B, n, h, w, D)."""
        positions = None
        if self.pos_emb is not None:
            rows = times[:, None] * inputs[0, 0].numel() + torch.arange(inputs[0, 0].numel(), device=times.device)
            positions = self.pos_emb.weight.index_select(0, rows.flatten())
        x, condition = self._embed(inputs, actions, cache.embeddings, positions)
        return self.transformer.extend(x, condition, cache.transformer, times)


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"dynamics.{key} is {value!r}, expected one of {', '.join(choices)}")
