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
from models.interfaces import Sampling
from training.metrics import FID, PSNR, SSIM, ClipValues, mean_and_interval, psnr
from training.settings import EvalSettings

GAIN_HORIZONS = (2, 10)  # first and last predicted frame over which the gain over copying is averaged
RANDOM, REPLACED = 0, 1  # streams of random actions


class Drawn(NamedTuple):
    """What a model made of a batch."""

    true: Tensor  # (B, T, C, H, W)
    model: Tensor  # (B, T, C, H, W); a world's given frames are the true ones
    num_given: int
    actions: Tensor | None  # (B, T-1)


class Comparison:
    """PSNR and SSIM of one predictor; the model and each row beside it has one."""

    def __init__(self):
        self.psnr, self.ssim = PSNR(), SSIM()

    def update(self, predicted: Tensor, target: Tensor, numbers: Sequence[int]) -> Tensor:
        """Returns the PSNR of every frame, (B, T)."""
        self.ssim.update(predicted, target, numbers)
        return self.psnr.update(predicted, target, numbers)

    def gather(self) -> None:
        self.psnr.gather()
        self.ssim.gather()

    def compute(self, prefix: str) -> dict:
        """Results, each key after `prefix`."""
        psnr_, ssim = self.psnr.compute(), self.ssim.compute()
        return {
            f"{prefix}psnr": psnr_["mean"],
            f"{prefix}psnr_ci95": psnr_["ci95"],
            f"{prefix}psnr_by_horizon": psnr_["by_horizon"],
            f"{prefix}psnr_by_horizon_ci95": psnr_["by_horizon_ci95"],
            f"{prefix}ssim": ssim["mean"],
            f"{prefix}ssim_ci95": ssim["ci95"],
            f"{prefix}ssim_by_horizon": ssim["by_horizon"],
        }


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

    def __init__(self, tokenizer: nn.Module, settings: EvalSettings, inception: nn.Module | None):
        self.tokenizer = tokenizer
        self.model = Comparison()
        self.fids = make_fids(inception)
        self.codes = Counts(tokenizer.codebook_size)

    def update(self, clip: Clip, numbers: Sequence[int]) -> Drawn:
        tokens = self.tokenizer.encode(clip.frames)
        frames = self.tokenizer.decode(tokens)
        self.model.update(frames, clip.frames, numbers)
        self.codes.update(tokens)
        for fid in self.fids.values():
            fid.update(frames, clip.frames)
        return Drawn(clip.frames, frames, 0, None)

    def gather(self, device: torch.device) -> None:
        self.model.gather()
        self.codes.gather(device)
        for fid in self.fids.values():
            fid.gather()

    def compute(self) -> dict:
        results = self.model.compute("")
        # Horizons count predicted frames; a tokenizer predicts none.
        results |= {"psnr_by_horizon": None, "psnr_by_horizon_ci95": None, "ssim_by_horizon": None}
        results |= {name: fid.compute() for name, fid in self.fids.items()}
        return results | {
            "num_clips": len(self.model.psnr.values),
            "psnr_floored_frames": self.model.psnr.num_floored,
            "codebook_usage": self.codes.share_used,
            "codebook_perplexity": self.codes.perplexity,
        }

    def values_by_clip(self) -> dict[str, np.ndarray]:
        return {"psnr": self.model.psnr.values, "ssim": self.model.ssim.values}


class WorldScorer:
    """Dreams of the true future beside their floor and ceiling, and what the actions change in them.

    The action sequence is the clip's own: inferred from the true frames for a latent world, recorded for a guided one.
    Every rollout of a clip has the same prompt and the same seeds, so the same noise: only the actions differ.
    """

    def __init__(self, world: nn.Module, settings: EvalSettings, inception: nn.Module | None):
        self.world = world
        self.settings = settings
        self.num_given, self.num_new = settings.num_first_frames, settings.sample_num_frames
        self.model, self.copy, self.ceiling = Comparison(), Comparison(), Comparison()
        self.random = Comparison() if world.is_latent else None
        self.delta, self.delta_last = ClipValues(), ClipValues()
        self.fids = make_fids(inception)
        self.actions = Counts(world.num_actions)

    def update(self, clip: Clip, numbers: Sequence[int]) -> Drawn:
        clip = first_frames(clip, self.num_given + self.num_new)
        prompt, future = clip.frames[:, : self.num_given], clip.frames[:, self.num_given :]
        actions = self.world.infer(clip)
        dream = self._rollout(clip, actions)
        of_model = self.model.update(dream, future, numbers)
        self.copy.update(prompt[:, -1:].expand_as(future), future, numbers)
        tokenizer = self.world.tokenizer
        reconstruction = tokenizer.decode(tokenizer.encode(clip.frames))
        self.ceiling.update(reconstruction[:, self.num_given :], future, numbers)
        self._compare_actions(clip, actions, future, of_model[:, self.settings.delta_psnr_horizon - 1], numbers)
        for fid in self.fids.values():
            fid.update(dream, future)
        self.actions.update(actions)
        return Drawn(clip.frames, torch.cat([prompt, dream.to(prompt.dtype)], dim=1), self.num_given, actions)

    def _compare_actions(
        self, clip: Clip, actions: Tensor, future: Tensor, of_model: Tensor, numbers: Sequence[int]
    ) -> None:
        """Both ΔPSNR at horizon t. of_model: (B,), PSNR of predicted frame t under the true actions.

        The rollout under the true actions is at hand; the others go no further than horizon t needs, but the first
        random one of a latent world, which is a row of its own.
        """
        horizon = self.settings.delta_psnr_horizon
        target = future[:, horizon - 1]
        of_random = torch.zeros_like(of_model)
        for sequence in range(self.settings.num_random_actions):
            whole = sequence == 0 and self.random is not None
            others = random_actions(actions, clip.seeds, self.num_given, self.world.num_actions, sequence)
            frames = self._rollout(clip, others, None if whole else horizon)
            if whole:
                self.random.update(frames, future, numbers)
            of_random += psnr(frames[:, horizon - 1], target)
        self.delta.add(numbers, of_model - of_random / self.settings.num_random_actions)
        if self.world.num_actions > 1:
            others = replace_action(actions, clip.seeds, self.num_given + horizon - 2, self.world.num_actions)
            frames = self._rollout(clip, others, horizon)
            self.delta_last.add(numbers, of_model - psnr(frames[:, horizon - 1], target))

    def _rollout(self, clip: Clip, actions: Tensor, num_needed: int | None = None) -> Tensor:
        """Predicted frames (B, K, C, H, W), of which the first `num_needed` equal those of a whole rollout."""
        return roll_out(self.world, clip, actions, self.settings, num_needed)

    def gather(self, device: torch.device) -> None:
        for part in (self.model, self.copy, self.ceiling, self.random, self.delta, self.delta_last):
            if part is not None:
                part.gather()
        self.actions.gather(device)
        for fid in self.fids.values():
            fid.gather()

    def compute(self) -> dict:
        results = self.model.compute("") | self.copy.compute("copy_last_") | self.ceiling.compute("ceiling_")
        if self.random is not None:
            results |= self.random.compute("random_actions_")
        for key, values in (("delta_psnr", self.delta), ("delta_psnr_last", self.delta_last)):
            computed = values.compute()
            results |= {key: computed["mean"], f"{key}_ci95": computed["ci95"]}
        gain = mean_and_interval(self._gain())
        results |= {name: fid.compute() for name, fid in self.fids.items()}
        return results | {
            "psnr_gain_h2_10": gain["mean"],
            "psnr_gain_h2_10_ci95": gain["ci95"],
            "num_clips": len(self.model.psnr.values),
            "psnr_floored_frames": self.model.psnr.num_floored,
            "action_usage": {"counts": self.actions.counts.tolist(), "perplexity": self.actions.perplexity},
        }

    def _gain(self) -> np.ndarray:
        """PSNR over that of copying, mean over horizons 2–10, for each clip: (N,), empty where K < 2."""
        first, last = GAIN_HORIZONS
        gain = (self.model.psnr.values - self.copy.psnr.values)[:, first - 1 : last]
        return gain.mean(axis=1) if gain.size else np.empty(0)

    def values_by_clip(self) -> dict[str, np.ndarray]:
        values = {"psnr": self.model.psnr, "ssim": self.model.ssim, "copy_last_psnr": self.copy.psnr}
        values |= {"ceiling_psnr": self.ceiling.psnr, "delta_psnr": self.delta, "delta_psnr_last": self.delta_last}
        return {name: metric.values for name, metric in values.items()}


# ------------------------------------------------------------------------------------------------------------- rollouts


def roll_out(
    world: nn.Module, clip: Clip, actions: Tensor, settings: EvalSettings, num_needed: int | None = None
) -> Tensor:
    """The frames a world predicts after the clip's first ones, the way the settings say: (B, K, C, H, W).

    num_needed: stop early, but so that the first `num_needed` frames are those of the whole rollout. Worlds are causal
    in time and noise belongs to a position, so one pass over fewer frames gives the same; several passes order the
    tokens of a round by confidence, and the round must stay whole.
    """
    num_given, num_new = settings.num_first_frames, settings.sample_num_frames
    chunk = chunk_of(settings)
    length = num_new if num_needed is None else num_needed
    if settings.inference_steps > 1:
        length = min(num_new, -(-length // chunk) * chunk)
    return world.rollout(
        clip.frames[:, :num_given],
        actions[:, : num_given + length - 1],
        sampling=sampling_of(settings),
        chunk=min(chunk, length),
        seeds=clip.seeds,
    ).frames


def chunk_of(settings: EvalSettings) -> int:
    """Frames that are predicted together."""
    return settings.sample_num_frames if settings.inference_method == "one_go" else settings.dream_length


def sampling_of(settings: EvalSettings) -> Sampling:
    return Sampling(
        steps=settings.inference_steps,
        schedule=settings.sample_schedule,
        temperature=settings.sample_temperature,
        top_k=settings.sample_top_k,
        noise=settings.sample_noise,
    )


def first_frames(clip: Clip, num_frames: int) -> Clip:
    actions = None if clip.actions is None else clip.actions[:, : num_frames - 1]
    return clip._replace(frames=clip.frames[:, :num_frames], actions=actions)


def random_actions(actions: Tensor, seeds: Tensor, num_given: int, num_actions: int, sequence: int) -> Tensor:
    """`actions` (B, P-1+K) with all after the prompt drawn uniformly, by each clip's seed and the sequence's number."""
    others = actions.clone()
    for row, seed in enumerate(seeds.tolist()):
        drawn = _generator(seed, RANDOM, sequence).integers(num_actions, size=actions.shape[1])
        others[row, num_given - 1 :] = torch.from_numpy(drawn[num_given - 1 :])
    return others


def replace_action(actions: Tensor, seeds: Tensor, place: int, num_actions: int) -> Tensor:
    """`actions` with the one at `place` replaced by a different one, uniformly among the others."""
    others = actions.clone()
    for row, seed in enumerate(seeds.tolist()):
        step = int(_generator(seed, REPLACED).integers(1, num_actions))
        others[row, place] = (actions[row, place] + step) % num_actions
    return others


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def make_fids(inception: nn.Module | None) -> dict[str, FID]:
    if inception is None:
        return {}
    return {"fid": FID(inception, nearest=False), "fid_nearest": FID(inception, nearest=True)}
