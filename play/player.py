"""One player's dream: where it began, where it is, and what of it is being recorded. Knows nothing of the network."""

import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.interfaces import Sampling
from models.session import Session
from play.library import Loaded
from play.prompts import Prompt
from play.reality import Reality, psnr
from play.recording import beside


@dataclass(frozen=True)
class Wishes:
    """What a player set; checked before it gets here."""

    seed: int
    steps: int
    temperature: float
    fps: float


class Shown(NamedTuple):
    """One frame, as the player sees it."""

    number: int  # 0 is the prompt
    action: int | None  # that led to it; None for the prompt
    dream: np.ndarray  # (H, W, 3) uint8
    truth: np.ndarray | None  # of the true game, where it runs
    is_over: bool  # the true game's episode has ended
    milliseconds: float  # that it took to compute

    @property
    def psnr(self) -> float | None:
        """Between dream and truth, in dB; None without a truth, or one that goes on no more."""
        return None if self.truth is None or self.is_over else psnr(self.dream, self.truth)


class Player:
    """A dream in progress. Every method computes, so that all are called from the one thread that does.

    window: latest frames that attention over time reads. reality: the true game from the same first frame, or None.
    max_film_seconds: that one recording holds.
    """

    def __init__(
        self,
        loaded: Loaded,
        prompt: Prompt,
        wishes: Wishes,
        *,
        window: int,
        max_rewind: int,
        max_film_seconds: float,
        reality: Reality | None,
    ):
        self.loaded, self.prompt, self.wishes = loaded, prompt, wishes
        self._window, self._max_rewind, self._max_film_seconds = window, max_rewind, max_film_seconds
        self._reality = reality
        self._film: list[np.ndarray] | None = None
        self._film_length = 0  # frames that it may have
        self._begin()

    def _begin(self) -> None:
        world, device = self.loaded.world, self.loaded.device
        picture = torch.from_numpy(self.prompt.picture.copy()).to(device)
        with as_trained(device):
            self._session: Session = world.start(
                picture.permute(2, 0, 1)[None, None].float() / 255,
                sampling=sampling_of(self.wishes),
                seeds=torch.tensor([self.wishes.seed], device=device),
                window=self._window,
                max_rewind=self._max_rewind,
            )
        self._shown = deque([self._shown_of(None, self.prompt.picture, 0.0)], maxlen=self._max_rewind + 1)

    @property
    def now(self) -> Shown:
        return self._shown[-1]

    @property
    def num_rewindable(self) -> int:
        """Frames that `rewind` can take back now, besides all of them."""
        return min(self._session.num_rewindable, len(self._shown) - 1)

    @property
    def is_recording(self) -> bool:
        return self._film is not None

    @property
    def film_is_full(self) -> bool:
        return self._film is not None and len(self._film) >= self._film_length

    def num_bytes(self, max_fps: float) -> int:
        """Memory that is this player's alone, at most."""
        num_pictures = self._max_rewind + 1 + self._film_frames(max_fps)
        reality = 0 if self._reality is None else self._reality.num_bytes()
        return self._session.num_bytes() + num_pictures * 2 * self.prompt.picture.nbytes + reality

    def set(self, wishes: Wishes) -> None:
        """From the next frame on; the seed from the next reset on."""
        self.wishes = wishes
        self._session.sampling = sampling_of(wishes)

    def step(self, action: int) -> Shown:
        started = time.perf_counter()
        device = self.loaded.device
        with as_trained(device):
            frame = self._session.step(torch.tensor([action], device=device))
        picture = to_picture(frame[0])
        milliseconds = 1e3 * (time.perf_counter() - started)
        if self._reality is not None:
            self._reality.step(action)
        shown = self._shown_of(action, picture, milliseconds)
        self._shown.append(shown)
        if self._film is not None and not self.film_is_full:
            self._film.append(beside(shown.dream, shown.truth))
        return shown

    def rewind(self, count: int) -> Shown:
        """Take `count` frames back; as many as there are begins anew. Raises ValueError beyond what is kept."""
        if count >= self.now.number:
            return self.reset()
        if count > self.num_rewindable:
            raise ValueError(f"cannot take {count} frames back, at most {self.num_rewindable} here, or all of them")
        self._session.rewind(count)
        if self._reality is not None:
            self._reality.rewind(count)
        for _ in range(count):
            self._shown.pop()
        return self.now

    def reset(self) -> Shown:
        """Begin again with the same first frame."""
        if self._reality is not None:
            self._reality.reset()
        self._begin()
        return self.now

    def record(self) -> None:
        """Remember frames from the current one on."""
        self._film = [beside(self.now.dream, self.now.truth)]
        self._film_length = self._film_frames(self.wishes.fps)

    def take_film(self) -> list[np.ndarray]:
        """The frames of the recording, which ends it."""
        film, self._film = self._film or [], None
        return film

    def close(self) -> None:
        if self._reality is not None:
            self._reality.close()

    def _film_frames(self, fps: float) -> int:
        return max(2, round(self._max_film_seconds * fps))

    def _shown_of(self, action: int | None, dream: np.ndarray, milliseconds: float) -> Shown:
        number = self._session.num_frames - 1
        truth, is_over = (None, False) if self._reality is None else (self._reality.picture, self._reality.is_over)
        return Shown(number, action, dream, truth, is_over, milliseconds)


def sampling_of(wishes: Wishes) -> Sampling:
    """At a temperature, refinement also draws which tokens are kept, as MaskGIT does."""
    return Sampling(steps=wishes.steps, temperature=wishes.temperature, noise=wishes.temperature)


def to_picture(frame: Tensor) -> np.ndarray:
    """(C, H, W) unclamped -> (H, W, 3) uint8."""
    return (frame.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()


def as_trained(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
