"""When the next frame of a player is due, and how many are on their way: a slow player slows nobody else."""

import time
from collections import deque

MOST_UNDER_WAY = 2  # frames that the player has not yet drawn
FPS_FRAMES = 16  # that the measured rate is taken over


class Pace:
    """Of one player; times are seconds of the monotonic clock."""

    def __init__(self):
        self._under_way: deque[int] = deque()
        self._shown_at: deque[float] = deque(maxlen=FPS_FRAMES)
        self._due = 0.0

    def begin(self) -> None:
        """Another dream: nothing of the one before is waited for."""
        self._under_way.clear()
        self._shown_at.clear()

    def measure_anew(self) -> None:
        """The frames that follow come after a break."""
        self._shown_at.clear()

    @property
    def has_room(self) -> bool:
        return len(self._under_way) < MOST_UNDER_WAY

    def seconds_left(self) -> float:
        """Until the next frame is due; not above 0 where it is."""
        return self._due - time.monotonic()

    def set_out(self, fps: float) -> None:
        """A frame is being computed: the next one is due 1/fps later, and what was late is not made up for."""
        self._due = max(self._due, time.monotonic() - 1 / fps) + 1 / fps

    def sent(self, number: int) -> None:
        self._shown_at.append(time.monotonic())
        self._under_way.append(number)

    def drawn(self, number: int) -> None:
        """All frames up to the last of this number have been drawn; numbers repeat after going back."""
        while number in self._under_way:
            self._under_way.popleft()

    def fps(self) -> float | None:
        """As measured over the latest frames; None before there are two."""
        if len(self._shown_at) < 2 or self._shown_at[-1] == self._shown_at[0]:
            return None
        return round((len(self._shown_at) - 1) / (self._shown_at[-1] - self._shown_at[0]), 2)
