"""When a signal comes in a step that takes too long to wait for: the step is dropped, what was before it is saved.

Schedulers kill some 30 seconds after SIGTERM, while a step of a large model or its first compilation takes minutes. The
main thread may then be anywhere in a forward or backward pass, or wait for other processes, and cannot be stopped in
there. So it is left where it is: a second thread saves what was between the two steps (`TrainingState.moments`) and
ends the process. It can, since weights, optimizers and counters only change while the state's lock is held: an update
that has begun is finished. Of several processes the main one decides and saves, and the others hand it their random
states and end when it does, wherever they are.
"""

import os
import sys
import threading
import time
import traceback
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch.distributed as dist

from training import messages
from training.processes import Interrupts
from training.saving import beside
from training.state import Moment

if TYPE_CHECKING:
    from training.trainer import Trainer

PATIENCE_SECONDS = 5.0  # a step that ends in this time after the signal is kept
POLL_SECONDS = 0.25
ANSWER_SECONDS = 5.0  # for the other processes to hand over their random states, and to see that all is saved


class Rescue(AbstractContextManager):
    """Watches for signals beside the training loop; see above."""

    def __init__(self, run: "Trainer", interrupts: Interrupts):
        self.run = run
        self.board = run.board
        self.interrupts = interrupts
        self._is_over = threading.Event()
        self._is_leaving = False
        self._thread = threading.Thread(target=self._watch, name="rescue")

    def __enter__(self) -> "Rescue":
        # What is spread takes all main threads to collect: a signal waits for the end of the step there.
        if not self.run.state.is_spread:
            self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        if not self._is_leaving:  # else whatever happened here came of processes that are leaving already
            self._is_over.set()
            self.interrupts.wake()
        if self._thread.ident is not None:
            self._thread.join()

    def stand_down(self) -> None:
        """The loop has ended and its own way to save begins. Does not return where a step is being dropped."""
        with self.run.state.lock:
            self._is_over.set()

    def _watch(self) -> None:
        try:
            self._watch_on()
        except dist.DistError:  # the main process is gone
            if self._is_leaving:
                _end(1)

    def _watch_on(self) -> None:
        number, since = 0, 0.0
        while not self._is_over.is_set():
            if not number and (number := self._listen()):
                since = time.monotonic()
            if number:
                self._is_over.wait(POLL_SECONDS)
            if not self.run.accelerator.is_main_process:
                if (key := self.board.read("drop")) is not None:
                    self._leave_with_main(key)
            elif number and time.monotonic() - since > PATIENCE_SECONDS:
                self._save_and_leave(number)
                return

    def _listen(self) -> int:
        """Number of a signal that any process got, or 0."""
        number = self.interrupts.heard(POLL_SECONDS)
        if number:
            self.board.pin("signal", number)
        return number or self.board.read("signal") or 0

    def _save_and_leave(self, number: int) -> None:
        """The main process: save and end, or go on where the loop has ended or another process does not answer."""
        with self.run.state.lock:  # the main thread cannot change anything from here on
            if self._is_over.is_set():
                return
            moment = self.run.state.moments[-1]
            self._is_leaving = True
            self.board.pin("drop", moment.key)
            self._hand_over(moment)
            own_states = self.board.read_of_all(f"state-{moment.key}", ANSWER_SECONDS)
            if own_states is None:
                self._is_leaving = False
                self.board.pin("drop", None)
                return
            code = self._save(own_states, moment, number)
            self.board.pin("leave", code)
            self.board.pin("left/0", True)
            self.board.read_of_all("left", ANSWER_SECONDS)
            _end(code)

    def _save(self, own_states: list[dict], moment: Moment, number: int) -> int:
        """Save, say so and close the logs; returns the exit code."""
        run = self.run
        try:
            run.saver.save_moment(own_states, moment)
            run.shown.close()
            run.log.close()
            print(messages.closing(run, number), flush=True)
            return messages.exit_code(number)
        except (ValueError, OSError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            return 2
        except Exception:
            traceback.print_exc()
            return 1

    def _leave_with_main(self, key: str) -> None:
        self._is_leaving = True
        while (code := self.board.read("leave")) is None:
            if self.board.read("drop") is None:
                self._is_leaving = False
                return
            # Not with the lock: this main thread may have it and wait in an update for the main process.
            moment = next((moment for moment in reversed(list(self.run.state.moments)) if moment.key == key), None)
            if moment is not None:
                self._hand_over(moment)
            time.sleep(POLL_SECONDS)
        self.board.pin(f"left/{self.board.rank}", True)
        _end(code)

    def _hand_over(self, moment: Moment) -> None:
        with beside(self.run.accelerator.device, moment.ready):
            own_state = moment.own_state()
        self.board.pin(f"state-{moment.key}/{self.board.rank}", own_state)


def _end(code: int) -> None:
    """End the process whatever its main thread does."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
