"""What is measured of a model on one batch of clips after the other: a tokenizer's pictures, a world's dreams.

A scorer has `update(clip, numbers)`, which returns the model's frames so that they can be drawn, `gather` and
`compute`. It knows of a model only `encode`, `decode`, `infer` and `rollout`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from data.clips import Clip
from models.interfaces import Rollout
from training.action_reader import ActionFollowing
from training.intervals import by_horizon, mean_and_interval, ratio_interval
from training.latent_tables import LatentActions
from training.metrics import ClipValues, psnr
from training.rollouts import autocast, dream, first_frames, frames_before, random_actions, replace_action, roll_out
from training.rows import Comparison, Networks, make_distances
from training.settings import EvalSettings

__all__ = ["Drawn", "TokenizerScorer", "WorldScorer", "first_frames", "roll_out"]

GAIN_HORIZONS = (2, 10)  # first and last predicted frame over which the gain over copying is averaged


class Drawn(NamedTuple):
    """What a model made of a batch."""

    true: Tensor  # (B, T, C, H, W)
    model: Tensor  # (B, T, C, H, W); a world's given frames are the true ones
    num_given: int
    actions: Tensor | None  # (B, T-1)


class Counts:
    """How often each of `size` codes or actions is used."""

    def __init__(self, size: int):
        self.counts = torch.zeros(size, dtype=torch.int64)

    def update(self, indices: Tensor) -> None:
        self.counts += torch.bincount(indices.flatten(), minlength=len(self.counts)).cpu()

    def gather(self, device: torch.device) -> None:
        self.counts = reduce(self.counts.to(device), reduction="sum").cpu()

    @property
    def perplexity(self) -> float | None:
        """exp of the entropy of use: 1 if one code does all, `size` if all are used alike."""
        shares = self.counts.double() / self.counts.sum()
        return float(torch.exp(torch.special.entr(shares).sum())) if self.counts.sum() else None

    @property
    def share_used(self) -> float:
        return float((self.counts > 0).double().mean())


class TokenizerScorer:
    """Reconstruction of whole clips, and the use of the codebook."""

    def __init__(self, tokenizer: nn.Module, settings: EvalSettings, networks: Networks):
        self.tokenizer, self.settings = tokenizer, settings
        self.model = Comparison(networks)
        self.distances = make_distances(networks, settings.num_frames)
        self.codes = Counts(tokenizer.codebook_size)

    def update(self, clip: Clip, numbers: Sequence[int]) -> Drawn:
        with autocast(self.settings, clip.frames.device):
            tokens = self.tokenizer.encode(clip.frames)
        frames = self.tokenizer.decode(tokens)
        self.model.update(frames, clip.frames, numbers)
        self.codes.update(tokens)
        for metric in self.distances:
            metric.update_true(clip.frames, numbers)
            metric.update("", frames, numbers)
        return Drawn(clip.frames, frames, 0, None)

    def gather(self, device: torch.device) -> None:
        self.model.gather()
        self.codes.gather(device)
        for metric in self.distances:
            metric.gather()

    def compute(self) -> dict:
        results = self.model.compute("")
        # Horizons count predicted frames; a tokenizer predicts none.
        results |= dict.fromkeys(key for key in results if "_by_horizon" in key)
        for metric in self.distances:
            results |= metric.compute()
        return results | {
            "num_clips": len(self.model.psnr.values),
            "num_frames_compared": self.model.psnr.values.size,
            "psnr_floored_frames": self.model.psnr.num_floored,
            "codebook_usage": self.codes.share_used,
            "codebook_perplexity": self.codes.perplexity,
            "codebook_counts": self.codes.counts.tolist(),
        }

    def values_by_clip(self) -> dict[str, np.ndarray]:
        return values_of({"psnr": self.model.psnr, "ssim": self.model.ssim, "lpips": self.model.lpips})


class WorldScorer:
    """Dreams of the true future beside their floor and ceiling, and what the actions change in them.

    The action sequence is the clip's own: inferred from the true frames for a latent world, recorded for a guided one.
    Every rollout of a clip has the same prompt and the same seeds, so the same noise: only the actions differ. The true
    frames are encoded once, for the ceiling and as the prompt of every rollout.

    num_real_actions: of the recorded actions, for the tables of a latent world.
    """

    def __init__(
        self,
        world: nn.Module,
        settings: EvalSettings,
        networks: Networks,
        num_clips: int | None = None,
        num_real_actions: int | None = None,
    ):
        self.world, self.settings = world, settings
        self.num_real_actions = num_real_actions
        self.num_given, self.num_new = settings.num_first_frames, settings.sample_num_frames
        self.model, self.copy, self.ceiling = (Comparison(networks) for _ in range(3))
        self.random = Comparison(networks) if world.is_latent else None
        self.delta, self.delta_last = ClipValues(), ClipValues()
        self.distances = make_distances(networks, self.num_new)
        self.following = ActionFollowing(networks.reader, self.num_given) if networks.reader is not None else None
        self.actions = Counts(world.num_actions)
        self.latents = LatentActions(world.num_actions, num_clips) if world.is_latent else None

    def update(self, clip: Clip, numbers: Sequence[int]) -> Drawn:
        clip = first_frames(clip, self.num_given + self.num_new)
        prompt, future = clip.frames[:, : self.num_given], clip.frames[:, self.num_given :]
        actions = self._infer(clip, numbers)
        with autocast(self.settings, clip.frames.device):
            tokens = self.world.tokenizer.encode(clip.frames)
        ceiling = self.world.tokenizer.decode(tokens)[:, self.num_given :]
        dreamt = dream(self.world, clip, actions, self.settings, tokens=tokens)
        frames = dreamt.frames.to(prompt.dtype)
        of_model = self.model.update(frames, future, numbers)
        self.copy.update(prompt[:, -1:].expand_as(future), future, numbers)
        self.ceiling.update(ceiling, future, numbers)
        self._compare_actions(clip, tokens, actions, dreamt, of_model, numbers)
        for metric in self.distances:
            metric.update_true(future, numbers)
            metric.update("", frames, numbers)
            metric.update_still("copy_last_", prompt[:, -1:], self.num_new)
            metric.update("ceiling_", ceiling)
        whole = torch.cat([prompt, frames], dim=1)
        if self.following is not None and clip.actions is not None:
            self.following.update(frames, ceiling, clip, numbers)
        return Drawn(clip.frames, whole, self.num_given, actions)

    def _infer(self, clip: Clip, numbers: Sequence[int]) -> Tensor:
        """The clip's own actions, counted, and for a latent world put beside the recorded ones."""
        vectors = None
        with autocast(self.settings, clip.frames.device):
            if self.world.is_latent and hasattr(self.world, "infer_latents"):
                actions, vectors = self.world.infer_latents(clip)
            else:
                actions = self.world.infer(clip)
        self.actions.update(actions)
        if self.latents is not None:
            self.latents.update(numbers, actions, clip.actions, vectors)
        return actions

    def _compare_actions(
        self, clip: Clip, tokens: Tensor, actions: Tensor, dreamt: Rollout, of_model: Tensor, numbers: Sequence[int]
    ) -> None:
        """Both ΔPSNR. dreamt, of_model (B, K): the rollout under the clip's actions, and the PSNR of its frames.

        That rollout is at hand; the others go no further than horizon t needs, but the first random one of a latent
        world, which is a row of its own.
        """
        horizon = self.settings.delta_psnr_horizon
        future = clip.frames[:, self.num_given :]
        of_random = torch.zeros_like(of_model[:, :horizon])
        for sequence in range(self.settings.num_random_actions):
            whole = sequence == 0 and self.random is not None
            others = random_actions(actions, clip.seeds, self.num_given, self.world.num_actions, sequence)
            needed = None if whole else horizon
            frames = dream(self.world, clip, others, self.settings, num_needed=needed, tokens=tokens).frames
            if whole:
                self.random.update(frames, future, numbers)
            of_random += psnr(frames[:, :horizon], future[:, :horizon])
        self.delta.add(numbers, of_model[:, :horizon] - of_random / self.settings.num_random_actions)
        if self.world.num_actions > 1:
            of_replaced = psnr(self._last_replaced(clip, actions, dreamt), future[:, horizon - 1])
            self.delta_last.add(numbers, of_model[:, horizon - 1] - of_replaced)

    def _last_replaced(self, clip: Clip, actions: Tensor, dreamt: Rollout) -> Tensor:
        """Predicted frame t where the action that leads to it is another one, (B, C, H, W).

        Worlds are causal: the rounds before the one of frame t are those of the rollout at hand, and are not repeated.
        """
        horizon = self.settings.delta_psnr_horizon
        others = replace_action(actions, clip.seeds, self.num_given + horizon - 2, self.world.num_actions)
        done = frames_before(self.settings, horizon)
        known = torch.cat([clip.frames[:, : self.num_given], dreamt.frames[:, :done].to(clip.frames.dtype)], dim=1)
        rest = dream(
            self.world,
            clip._replace(frames=known),
            others,
            self.settings,
            num_needed=horizon,
            tokens=dreamt.tokens,
            num_done=done,
        )
        return rest.frames[:, horizon - done - 1]

    def gather(self, device: torch.device) -> None:
        rows = (self.model, self.copy, self.ceiling, self.random)
        for part in (*rows, self.delta, self.delta_last, self.following, self.latents, *self.distances):
            if part is not None:
                part.gather()
        self.actions.gather(device)

    def compute(self) -> dict:
        results = self.model.compute("") | self.copy.compute("copy_last_") | self.ceiling.compute("ceiling_")
        if self.random is not None:
            results |= self.random.compute("random_actions_")
        results |= self._delta()
        for metric in self.distances:
            results |= metric.compute()
        if self.following is not None:
            results |= self.following.compute() | following_intervals(self.following)
        gain = mean_and_interval(self._gain())
        return results | {
            "psnr_gain_h2_10": gain["mean"],
            "psnr_gain_h2_10_ci95": gain["ci95"],
            "num_clips": len(self.model.psnr.values),
            "num_frames_compared": self.model.psnr.values.size,
            "psnr_floored_frames": self.model.psnr.num_floored,
            "action_usage": {"counts": self.actions.counts.tolist(), "perplexity": self.actions.perplexity},
            "latent_actions": None if self.latents is None else self.latents.compute(self.num_real_actions),
        }

    def _delta(self) -> dict:
        whole = self.delta.values
        at_horizon, last = mean_and_interval(whole[:, -1]), self.delta_last.compute()
        return {
            "delta_psnr": at_horizon["mean"],
            "delta_psnr_ci95": at_horizon["ci95"],
            "delta_psnr_by_horizon": whole.mean(axis=0).tolist() if whole.size else None,
            "delta_psnr_by_horizon_ci95": by_horizon(whole),
            "delta_psnr_last": last["mean"],
            "delta_psnr_last_ci95": last["ci95"],
        }

    def _gain(self) -> np.ndarray:
        """PSNR over that of copying, mean over horizons 2–10, for each clip: (N,), empty where K < 2."""
        first, last = GAIN_HORIZONS
        gain = (self.model.psnr.values - self.copy.psnr.values)[:, first - 1 : last]
        return gain.mean(axis=1) if gain.size else np.empty(0)

    def values_by_clip(self) -> dict[str, np.ndarray]:
        values = {"psnr": self.model.psnr, "ssim": self.model.ssim, "lpips": self.model.lpips}
        values |= {"copy_last_psnr": self.copy.psnr, "ceiling_psnr": self.ceiling.psnr}
        values |= {"delta_psnr": self.delta, "delta_psnr_last": self.delta_last, "action_following": self.following}
        return values_of(values)


def following_intervals(following: ActionFollowing) -> dict:
    """Of the rows beside the dream, and of the ratio of errors, in which dream and truth of a clip stay together."""
    dreamt, ceiling, real = (part.values for part in (following.dreamt, following.ceiling, following.real))
    if not dreamt.size:
        return {}
    return {
        "action_following_real_ci95": mean_and_interval(real.mean(axis=1))["ci95"],
        "ceiling_action_following_ci95": mean_and_interval(ceiling.mean(axis=1))["ci95"],
        "action_error_ratio_ci95": ratio_interval(1 - dreamt.mean(axis=1), 1 - real.mean(axis=1)),
    }


def values_of(metrics: dict[str, ClipValues | None]) -> dict[str, np.ndarray]:
    return {name: metric.values for name, metric in metrics.items() if metric is not None}
