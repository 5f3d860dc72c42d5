"""Many dreams in one batch, as a Gymnasium vector environment."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from models.session import Session
from play.gym_world import MAX_STEPS, METADATA, Dreams, check


class _Group(NamedTuple):
    """Rows whose episodes began together: one batch."""

    rows: np.ndarray
    session: Session


class WorldModelVectorEnv(VectorEnv):
    """`num_envs` dreams in one batch: row i is a `WorldModelEnv` seeded with seed + i, at a fraction of its cost.

    Arguments as there; `options["prompt"]` is for all rows that are reset. autoreset_mode: what becomes of a row whose
    episode was over, as Gymnasium's own vector environments do it.
        NEXT_STEP   the next step begins another episode and ignores the row's action
        SAME_STEP   another episode has begun already; the last frame is in `infos["final_obs"]`
        DISABLED    it waits for `reset(options={"reset_mask": rows})`, which the other modes know, too
    Rows that began together are stepped together.
    """

    def __init__(
        self,
        num_envs: int = 1,
        model_fpath: str | None = None,
        dataset: str | None = None,
        *,
        max_steps: int = MAX_STEPS,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **settings: Any,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}, expected at least 1")
        check(max_steps, render_mode)
        self._autoreset = _mode(autoreset_mode)
        self._dreams = Dreams(model_fpath, dataset, settings)
        self.num_envs, self.render_mode, self._max_steps = num_envs, render_mode, max_steps
        self.metadata = METADATA | {"autoreset_mode": self._autoreset}
        self.single_observation_space = self._dreams.observation_space
        self.single_action_space = self._dreams.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators = [seeding.np_random()[0] for _ in range(num_envs)]
        self._groups: list[_Group] = []
        self._is_over = np.zeros(num_envs, bool)
        self._pictures = np.zeros(self.observation_space.shape, np.uint8)

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """One generator for each row."""
        return tuple(self._generators)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        seeds = [seed + row for row in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is not None and len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} values, expected one for each of {self.num_envs} rows")
        rows = self._rows_to_reset(options)
        for row in rows:
            if seeds is not None and seeds[row] is not None:
                self._generators[row] = seeding.np_random(seeds[row])[0]
        infos = self._begin(rows, options)
        return self._pictures.copy(), infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,):
            raise InvalidAction(f"actions have shape {actions.shape}, expected {(self.num_envs,)}")
        if not self._groups:
            raise ResetNeeded("call reset() before step()")
        infos = self._next_step(actions)
        truncated = self._is_over.copy()
        if self._autoreset == AutoresetMode.SAME_STEP and truncated.any():
            infos = self._begin_at_once(np.flatnonzero(truncated))
        never = np.zeros(self.num_envs, bool)
        return self._pictures.copy(), np.zeros(self.num_envs), never, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        if not self._groups:
            raise ResetNeeded("call reset() before render()")
        return tuple(self._pictures.copy()) if self.render_mode == "rgb_array" else None

    def _next_step(self, actions: np.ndarray) -> dict[str, Any]:
        """A step of the rows that go on; those that were over begin again, or must not be there."""
        over = np.flatnonzero(self._is_over)
        if len(over) and self._autoreset == AutoresetMode.DISABLED:
            raise ResetNeeded(f"episodes of rows {over.tolist()} are over; reset(options={{'reset_mask': ...}}) them")
        going = [group for group in self._groups if not self._is_over[group.rows[0]]]
        infos = self._begin(over, None) if len(over) else {}
        for group in going:
            self._pictures[group.rows] = self._dreams.step(group.session, actions[group.rows])
            self._is_over[group.rows] = group.session.num_frames > self._max_steps
        return infos

    def _begin_at_once(self, over: np.ndarray) -> dict[str, Any]:
        """Other episodes in rows whose last frames the caller finds among the infos."""
        infos: dict[str, Any] = {}
        for row in over:
            infos = self._add_info(infos, {"final_obs": self._pictures[row].copy(), "final_info": {}}, row)
        return infos | self._begin(over, None)

    def _rows_to_reset(self, options: dict[str, Any] | None) -> np.ndarray:
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return np.arange(self.num_envs)
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise ValueError(f"options['reset_mask'] must hold {self.num_envs} booleans of which one is true")
        if not self._groups and not mask.all():
            raise ResetNeeded("call reset() for all rows before resetting some")
        return np.flatnonzero(mask)

    def _begin(self, rows: np.ndarray, options: dict[str, Any] | None) -> dict[str, Any]:
        """Begin these rows' episodes in a batch of their own; the others go on."""
        beginnings = [self._dreams.beginning(self._generators[row], options) for row in rows]
        session = self._dreams.begin(beginnings)
        self._groups = [*(rest for group in self._groups if (rest := _without(group, rows))), _Group(rows, session)]
        self._is_over[rows] = False
        infos: dict[str, Any] = {}
        for row, beginning in zip(rows, beginnings, strict=True):
            self._pictures[row] = beginning.picture
            infos = self._add_info(infos, beginning.info, row)
        return infos


def _mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        known = ", ".join(each.value for each in AutoresetMode)
        raise ValueError(f"autoreset_mode is {mode!r}, expected one of {known}") from None


def _without(group: _Group, rows: np.ndarray) -> _Group | None:
    """What is left of a group without these rows."""
    stays = ~np.isin(group.rows, rows)
    if stays.all():
        return group
    if not stays.any():
        return None
    kept = torch.from_numpy(np.flatnonzero(stays)).to(group.session.seeds.device)
    return _Group(group.rows[stays], group.session.select(kept))
