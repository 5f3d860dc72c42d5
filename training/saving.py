"""Checkpoints written beside the training: a step waits for a copy in CPU memory, the disk is waited for elsewhere."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from models import pretrained
from training import checkpoint, sharding
from training.setup import load_weights
from training.state import Moment

if TYPE_CHECKING:
    from training.trainer import Trainer


class HostMemory:
    """Copies of tensors in CPU memory. The next copy uses the same memory, so that only one of them is valid."""

    def __init__(self):
        self._kept: dict[tuple, Tensor] = {}
        self._on_gpu = False

    def copy(self, tree: Any) -> Any:
        """The same containers with copied tensors. Returns when the copies from a GPU are there."""
        copied = self._copy(tree, ())
        if self._on_gpu:
            torch.cuda.current_stream().synchronize()
        return copied

    def _copy(self, tree: Any, place: tuple) -> Any:
        if isinstance(tree, Tensor):
            self._on_gpu |= tree.is_cuda
            kept = self._kept.get(place)
            if kept is None or kept.shape != tree.shape or kept.dtype != tree.dtype:
                kept = torch.empty(tree.shape, dtype=tree.dtype, pin_memory=tree.is_cuda)
                self._kept[place] = kept
            return kept.copy_(tree.detach(), non_blocking=True)
        if isinstance(tree, dict):
            return {key: self._copy(value, (*place, key)) for key, value in tree.items()}
        if isinstance(tree, (list, tuple)):
            return type(tree)(self._copy(value, (*place, index)) for index, value in enumerate(tree))
        return tree


class Saver:
    """Saves a training and brings it back. One save is under way at a time; its errors are raised by what follows."""

    def __init__(self, run: "Trainer"):
        self.run = run
        self.saved_step: int | None = None  # of the last save that began
        self._memory = HostMemory()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def has_failed(self) -> bool:
        return self._error is not None

    # ------------------------------------------------------------------------------------------------------------ save

    def save(self) -> None:
        """Save the state between two steps, unless it is saved already. All processes must call this."""
        run, state = self.run, self.run.state
        if not state.step or state.step == self.saved_step:
            return
        self.wait()
        with state.lock:
            state.remember()
            own_states = gather_object([state.moments[-1].own_state()])
            if state.is_spread:
                self._begin_spread(own_states)
            elif run.accelerator.is_main_process:
                self._begin(own_states, state.moments[-1])
            self.saved_step = state.step
        if not run.settings.async_save:
            self.wait()

    def save_moment(self, own_states: list[dict[str, Any]], moment: Moment) -> None:
        """Save what was between two steps, whatever the main thread has been doing since, and wait for the file.

        Called from another thread of the main process, which holds the state's lock.
        """
        self.join()
        if not self._error and moment.step and moment.step != self.saved_step:
            with beside(self.run.accelerator.device, moment.ready):
                self._begin(own_states, moment)
            self.join()
        if self._error:
            raise self._error

    def _begin(self, own_states: list[dict[str, Any]], moment: Moment) -> None:
        run = self.run
        tensors, state = run.state.collect(own_states, moment.touched)
        if run.settings.async_save or moment.ready is not None:
            tensors, state = self._memory.copy((tensors, state))
        self._start(tensors, state)

    def _begin_spread(self, own_states: list[dict[str, Any]]) -> None:
        """The main process collects what all of them hold; nothing was touched since the last step."""
        is_main = self.run.accelerator.is_main_process
        tensors, state = sharding.collected(self.run.state.collect(own_states, {}), keep=is_main)
        if is_main:
            self._start(tensors, state)

    def _start(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        run = self.run
        writing = (tensors, self._metadata(), state, self._keep())
        self._thread = threading.Thread(target=self._write, args=(run.state.step, *writing), name="checkpoint")
        self._thread.start()

    def _write(self, step: int, tensors: dict, metadata: dict, state: dict, keep: checkpoint.Keep) -> None:
        def write_weights(fpath) -> None:
            pretrained.write_state(tensors, fpath, config=self.run.config, metadata=metadata)

        try:
            saved = checkpoint.save(self.run.run_dpath, step, write_weights, state, keep)
            self.run.shown.say(f"step {step}  saved {saved}")
        except Exception as error:  # raised in the main thread
            self._error = error

    def join(self) -> None:
        """Until this process has nothing left to write."""
        if self._thread is not None:
            self._thread.join()

    def wait(self) -> None:
        """Until the checkpoint is complete. All processes must call this, and all raise ValueError if it failed."""
        self.join()
        self.check(*self.run.agreement.largest(self.has_failed))

    def check(self, has_failed: float) -> None:
        """Raise if the main process could not write. has_failed: as all processes agreed."""
        if has_failed:
            raise self._error or ValueError("the main process could not write a checkpoint; it says why")

    def _keep(self) -> checkpoint.Keep:
        settings, best = self.run.settings, self.run.state.best
        is_wanted = settings.keep_best is not None and best is not None
        return checkpoint.Keep(settings.keep_last, settings.keep_every, best[1] if is_wanted else None)

    def _metadata(self) -> dict[str, Any]:
        """Facts for the header of the weight file."""
        run = self.run
        facts = {
            "model": run.cfg.model,
            "name": run.cfg.name,
            "step": run.state.step,
            "train_seconds": round(run.state.elapsed, 1),
            "dataset_name": run.settings.dataset_name,
            "action_names": run.dataset.episodes.action_names,
            "finished": run.progress >= 1,
        }
        return facts if run.tokenizer_hash is None else facts | {"tokenizer_hash": run.tokenizer_hash}

    # --------------------------------------------------------------------------------------------------------- restore

    def restore(self, step_dpath) -> None:
        """Go on from a step folder. Raises one line naming the file where that cannot be."""
        run = self.run
        saved = checkpoint.load_state(step_dpath)
        self._check_tokenizer(step_dpath)
        self._check_optimizers(step_dpath, saved["optimizers"])
        load_weights(run.state.model, step_dpath, run.config, "train.resume_ckpt")
        run.state.load_state_dict(saved, run.settings.seed)
        if step_dpath.parent.resolve() == run.run_dpath.resolve():
            self.saved_step = run.state.step
        else:
            run.state.log_run_id = None  # a branch is a run of its own

    def _check_optimizers(self, step_dpath, saved: dict[str, dict]) -> None:
        """What one kind of optimizer has gathered says nothing to another."""
        for name, part in self.run.state.parts.items():
            if saved[name].keys() != part.optimizer.state_dict().keys():
                raise ValueError(
                    f"train.resume_ckpt={step_dpath} holds the state of another kind of optimizer; set --optimizer= as "
                    f"it was, or start from its weights with another --name= and --train.init_fpath={step_dpath}"
                )

    def _check_tokenizer(self, step_dpath) -> None:
        """Tokens of another tokenizer mean something else: raises ValueError where the checkpoint knew another one."""
        before = pretrained.read_header(step_dpath)["metadata"].get("tokenizer_hash")
        if before != self.run.tokenizer_hash:
            raise ValueError(
                f"tokenizer_fpath={self.run.tokenizer_fpath} is not the tokenizer that {step_dpath} was trained with; "
                f"set --tokenizer_fpath={step_dpath.parent / pretrained.TOKENIZER}, or start anew with --name="
            )


@contextmanager
def beside(device: torch.device, ready: torch.cuda.Event | None) -> Iterator[None]:
    """Inside, this thread's work on a GPU waits for `ready` only, not for what other threads have queued since."""
    if ready is None:
        yield
        return
    torch.cuda.set_device(device)
    stream = torch.cuda.Stream()
    stream.wait_event(ready)
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()
