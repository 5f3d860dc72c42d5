"""The training loop: it knows parts, an objective and clips, but no kinds of models."""

import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from accelerate.utils import set_seed
from omegaconf import DictConfig, OmegaConf
from torch import nn

from data.clips import Clip, ClipDataset, training_batches
from models import pretrained
from training import checkpoint, compiling, flops, messages, optimizers, out_of_memory, record, sharding, tokenization
from training.alarm import CollapseAlarm
from training.clip_names import StepClips
from training.finite_guard import FiniteGuard
from training.logs import Averages, Progress, RunLog, Stretch, duration, full_disk_in_words
from training.objectives import MODEL, Objective, Part, one_loss
from training.processes import Agreement, Board, Interrupts
from training.rescue import Rescue
from training.rollouts import chunk_of, sampling_of
from training.saving import Saver
from training.schedules import Schedule
from training.settings import EvalSettings, ScheduleSettings, TokenizeSettings, TrainSettings
from training.setup import build_model, check_fit, checkpoint_gradients, load_weights, make_accelerator, prepare
from training.state import TrainingState
from training.usage import Usage
from training.validation import check_score_name, dreamed_in_training, is_better, validation_scores, write_samples

ESTIMATE_AFTER_STEPS = 5  # the first step or two warm up, so the time is foretold from the ones after


def train(cfg: DictConfig, *, objective: Objective = one_loss) -> None:
    """Train `cfg.network` as `cfg.train` and `cfg.optimizer` say, into the run folder <save_root>/<model>/<name>.

    Ends at `num_train_steps` or `max_train_seconds`, whichever is reached first. Ctrl-C saves and exits with 130,
    SIGTERM and SIGUSR1 save and exit with 0; a step that does not end within seconds of them is dropped. Raises
    ValueError or FileNotFoundError with one line for bad input, before anything is written, and ValueError where the
    loss stops being finite or a checkpoint cannot be written.
    """
    with out_of_memory.explained_while_building():
        run = Trainer(cfg, objective)
    run.run()


class Trainer:
    """One training from its configuration to its last checkpoint. Building it reads and checks; `run` writes."""

    def __init__(self, cfg: DictConfig, objective: Objective = one_loss):
        self.cfg = cfg
        self.objective = objective
        self.settings = settings = TrainSettings.from_config(cfg.train)
        schedule_settings, optimizer_node = ScheduleSettings.from_optimizer(cfg.optimizer)
        self.max_grad_norm = schedule_settings.max_grad_norm or float("inf")
        self.rolling = EvalSettings.from_config(cfg.eval) if cfg.get("eval") is not None else None
        self.run_dpath = Path(settings.save_root_dpath) / cfg.model / cfg.name
        self.start_dpath = checkpoint.find_start(self.run_dpath, settings.resume_ckpt)
        checkpoint.check_writable(self.run_dpath)
        self.dataset = self._open_dataset("train", seq_step=1)
        self.held_out = self._open_dataset("validation", seq_step=settings.seq_step)

        self.accelerator = make_accelerator(settings)
        self.agreement = Agreement(self.accelerator)
        self.board = Board(self.accelerator)
        set_seed(settings.seed)  # every process starts from the same weights …
        self.config = OmegaConf.to_container(cfg.network, resolve=True)
        tokenizer = self.config.get("tokenizer")  # the frozen one of a world
        self.tokenizer_fpath = None if tokenizer is None else pretrained.resolve_fpath(tokenizer["path"])
        self.tokenizer_hash = None if tokenizer is None else pretrained.content_hash(self.tokenizer_fpath)
        model = build_model(cfg.network).to(self.accelerator.device)
        if settings.gradient_checkpointing:
            checkpoint_gradients(model)
        check_fit(model, self.dataset, settings)
        if settings.token_cache:
            self.dataset = self._open_token_cache(model)
        self.flops_per_clip = flops.of_a_clip(model, self.dataset, self.accelerator)
        check_score_name(model, self.held_out, settings, self.accelerator)
        if settings.compile:
            compiling.compile_blocks(model, self.accelerator.device)
        if hasattr(model, "rollout") and self.rolling is not None:
            rolling = dreamed_in_training(self.rolling, settings)
            model.dynamics.rule.check(sampling_of(rolling), chunk_of(rolling))
        set_seed(settings.seed, device_specific=True)  # … and draws its own numbers outside of what clip seeds key
        if settings.init_fpath is not None:
            load_weights(model, settings.init_fpath, self.config, "train.init_fpath")
        if settings.sharding is not None:
            sharding.shard(model, self.accelerator)
        optimizer = optimizers.build(optimizer_node, model)
        schedule = Schedule(optimizer, schedule_settings, settings.num_train_steps)
        # The schedule is not given to prepare(): it would step once per process.
        module, optimizer = prepare(self.accelerator, model, optimizer)
        schedule.optimizer = optimizer
        parts = {MODEL: Part(module, optimizer, schedule)}
        # Unwrapped: the same weights, and mixed precision stays on.
        self.state = TrainingState(self.accelerator, parts, self.accelerator.unwrap_model(module), settings.ema_decay)
        self.alarm = CollapseAlarm(settings.collapse_alarm_steps)
        self.saver = Saver(self)
        if self.start_dpath is not None:
            self.saver.restore(self.start_dpath)
        clips = StepClips(
            self.dataset,
            self.state,
            seed=settings.seed,
            batch_size=settings.batch_size,
            grad_accum=settings.grad_accum,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        self.guard = FiniteGuard(self.accelerator, settings.on_nonfinite, self.state.skipped, clips.names)

    @property
    def clips_per_step(self) -> int:
        return self.settings.batch_size * self.settings.grad_accum * self.accelerator.num_processes

    @property
    def progress(self) -> float:
        """How much of the training is done, in [0, 1], by steps or by the clock, whichever is further."""
        budget = self.settings.max_train_seconds
        by_clock = 0.0 if budget is None else self.state.elapsed / budget
        return min(1.0, max(self.state.step / self.settings.num_train_steps, by_clock))

    @property
    def averages(self) -> Averages:
        """Scalars since the last log line."""
        return self.state.window

    # ------------------------------------------------------------------------------------------------------- the loop

    def run(self) -> None:
        if self.progress >= 1:
            self._print(messages.nothing_to_do(self))
            self.accelerator.end_training()
            return
        self._open_run_folder()
        self.shown = Progress(self.state.step, self.settings.num_train_steps, shown=self.accelerator.is_main_process)
        try:
            with Interrupts() as interrupts, Rescue(self, interrupts) as rescue, out_of_memory.explained(self):
                signal_number = self._loop(interrupts, rescue)
        finally:
            self.saver.join()
            self.shown.close()
            if self.log is not None:
                self.log.close()
            self.held.close()
        self._finish(signal_number)

    def _loop(self, interrupts: Interrupts, rescue: Rescue) -> int:
        """Train until the end or a signal; returns the signal's number or 0."""
        batches = training_batches(
            self.dataset,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
            clips_consumed=self.state.clips_consumed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            num_workers=self.settings.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        for part in self.state.parts.values():
            part.module.train()
        began = time.monotonic() - self.state.elapsed
        batches = self._after_first(batches)
        self.stretch = Stretch()
        self.first_step = self.state.step
        self.state.remember()
        self._catch_up()
        signal_number = 0
        while self.progress < 1 and not signal_number:
            self._train_step(batches)
            self.state.elapsed, signal_number = self._agree(time.monotonic() - began, interrupts.received)
            self._after_step(is_last=bool(signal_number))
        self.guard.check()
        if not signal_number and self.state.step % self.settings.validate_every:
            self._validate()
        rescue.stand_down()
        self.saver.save()
        self.saver.wait()
        return signal_number

    def _catch_up(self) -> None:
        """What an unbroken run has done after its last step, but one that was told to stop there had no time for."""
        step = self.state.step
        if self.averages.sums and step % self.settings.log_every == 0:
            self._log()
        if step and step % self.settings.validate_every == 0 and self.state.validated != step:
            with self.stretch.pausing():
                self._validate()

    def _after_first(self, batches: Iterator[Clip]) -> Iterator[Clip]:
        """The same batches once the first one is there: loader processes start, which is no waiting of a step."""
        waiting = Stretch()
        with waiting.waiting():
            first = next(batches)
        self.shown.say(f"first batch after {waiting.waited:.1f} s")
        return itertools.chain([first], batches)

    def _agree(self, seconds: float, signal_number: int) -> tuple[float, int]:
        """The main process's clock and any process's signal: both decide when all of them stop."""
        own_clock = seconds if self.accelerator.is_main_process else 0.0
        seconds, number, failed = self.agreement.largest(own_clock, signal_number, self.saver.has_failed)
        self.saver.check(failed)
        return seconds, int(number)

    def _train_step(self, batches) -> None:
        """One optimizer update from `grad_accum` micro-batches."""
        modules = [part.module for part in self.state.parts.values()]
        for part in self.state.parts.values():
            part.schedule.apply(self.state.step, self.progress)
        with ExitStack() as update:
            for _ in range(self.settings.grad_accum):
                with self.stretch.waiting():
                    clip = next(batches)
                clip = clip.to(self.accelerator.device)
                with self.accelerator.accumulate(*modules):  # decides when gradients are shared
                    self._micro_step(clip, update)
            self.state.advance(self.clips_per_step)
        self.stretch.steps += 1

    def _micro_step(self, clip, update: ExitStack) -> None:
        for name, output in self.objective(self.state.parts, clip, self.state.step):
            part = self.state.parts[name]
            prefix = "train" if name == MODEL else f"train/{name}"
            self.averages.add({f"{prefix}/{key}": value for key, value in {"loss": output.loss, **output.logs}.items()})
            self.accelerator.backward(self.guard.see(name, output.loss))
            if self.accelerator.sync_gradients:
                update.enter_context(self.state.lock)  # until here a step can be dropped, from here it is finished
                grad_norm = self.accelerator.clip_grad_norm_(part.module.parameters(), self.max_grad_norm)
                grad_norm = sharding.in_full(grad_norm)
                self.averages.add({f"{prefix}/grad_norm": grad_norm})
                if self.guard.allows_update(name, self.state.step, grad_norm, part.optimizer):
                    part.optimizer.step()
            part.optimizer.zero_grad()

    def _after_step(self, *, is_last: bool) -> None:
        """is_last: a signal ends the training, so that what takes time is left to the run that goes on."""
        step, settings = self.state.step, self.settings
        self.shown.step()
        if step == self.first_step + ESTIMATE_AFTER_STEPS:
            self.averages.read()  # waits for the device, so that the stretch's time is the time these steps took
            self.shown.say(f"expected time: {duration(self._seconds_left())}")
        if step % settings.log_every == 0:
            self._log()
        elif self.shown.is_due:
            self._show(self.averages.read())
        if is_last:
            return
        with self.stretch.pausing():
            if step % settings.validate_every == 0:
                self.guard.check()
                self._validate()
            if step % settings.save_model_every == 0:
                self.guard.check()
                self.saver.save()

    # ------------------------------------------------------------------------------------------------ what people see

    def _log(self) -> None:
        means = self.averages.read(self.accelerator)
        self.guard.check()
        if news := self.guard.news():
            self.shown.say(news)
        if self.log is not None:
            self.log.scalars(
                self.state.step,
                self.state.elapsed,
                means
                | {
                    "train/lr": self.state.parts[MODEL].schedule.lr,
                    "train/frames_per_second": self._frames_per_second(),
                    "train/data_wait_share": self.stretch.wait_share,
                    "train/mfu": self._mfu(),
                    "train/skipped_steps": self.state.skipped["total"],
                }
                | out_of_memory.peak(self.accelerator.device),
            )
            self._show(means)
            for warning in self.alarm.warnings(self.state.step, means):
                self.shown.say(warning)
        self.state.window, self.stretch = Averages(), Stretch()
        self.state.remember()

    def _show(self, means: dict[str, float]) -> None:
        self.shown.show(
            self.state.step,
            loss=means["train/loss"],
            lr=self.state.parts[MODEL].schedule.lr,
            frames_per_second=self._frames_per_second(),
            mfu=self._mfu(),
            seconds_left=self._seconds_left(),
        )

    def _frames_per_second(self) -> float:
        return self.stretch.steps * self.clips_per_step * self.settings.num_frames / self.stretch.seconds

    def _mfu(self) -> float:
        """The share of the devices' rate that the needed arithmetic reached, since the last reading."""
        needed = self.stretch.steps * self.clips_per_step * self.flops_per_clip
        return needed / self.stretch.seconds / self.rate.flops

    def _seconds_left(self) -> float:
        by_steps = (self.settings.num_train_steps - self.state.step) * self.stretch.seconds / max(1, self.stretch.steps)
        budget = self.settings.max_train_seconds
        return by_steps if budget is None else max(0.0, min(by_steps, budget - self.state.elapsed))

    def _validate(self) -> None:
        state, common = self.state, (self.held_out, self.settings, self.accelerator)
        folder = self.run_dpath / "samples" / checkpoint.step_name(state.step)
        pictures, usage = [], Usage(state.model)
        with state.averaged_weights(), sharding.whole_weights(state.model), compiling.eagerly():
            with usage.counting():
                scores = validation_scores(state.model, *common, state.step)
            if self.accelerator.is_main_process:
                with full_disk_in_words("samples", folder):
                    pictures = write_samples(state.model, *common, self.rolling, folder)
        usage.gather(self.accelerator.device)
        scores |= usage.scores()
        loss = scores["validation/loss"]
        if self.log is not None:
            self.log.scalars(state.step, state.elapsed, scores)
            with full_disk_in_words("logs", self.log.folder):
                self.log.pictures(state.step, pictures)
                self.log.histograms(state.step, {f"validation/{name}": counts for name, counts in usage.counts.items()})
        state.validated = state.step
        self._compare_with_best(scores)
        self.shown.say(f"step {state.step}  validation loss {loss:.4f}" + (f"  {pictures[0]}" if pictures else ""))
        self.accelerator.wait_for_everyone()

    def _compare_with_best(self, scores: dict[str, float]) -> None:
        name = self.settings.keep_best or "loss"
        value = scores[f"validation/{name}"]
        best = self.state.best
        if best is None or best[2] != name or is_better(name, value, best[0]):
            self.state.best = (value, self.state.step, name)
            if self.settings.keep_best is not None:
                self.saver.save()

    def _open_run_folder(self) -> None:
        self.accelerator.wait_for_everyone()  # all processes have seen the folder as it was
        self.rate = flops.joint_rate(self.accelerator)
        self.log, self.held = None, ExitStack()  # while it trains, nobody else trains into this folder
        self._take_run_folder()
        if self.accelerator.is_main_process:
            checkpoint.clean(self.run_dpath)
            # With its references, so that `--config=<this file> --key=value` changes whatever follows from the key.
            checkpoint.write_text(self.run_dpath / "config.yaml", OmegaConf.to_yaml(self.cfg))
            own_tokenizer = self.run_dpath / pretrained.TOKENIZER
            is_new = not checkpoint.list_steps(self.run_dpath)  # then what lies there is of a start that failed
            if self.tokenizer_fpath is not None and (is_new or not own_tokenizer.exists()):
                pretrained.copy_weights(self.tokenizer_fpath, own_tokenizer)
            config = OmegaConf.to_container(self.cfg, resolve=True)
            facts = {
                "config": config,
                "dataset_info": self.dataset.episodes.info,
                "num_processes": self.accelerator.num_processes,
            }
            self.changes = [] if self.start_dpath is None else record.changes(self.start_dpath.parent, **facts)
            record.add_start(
                self.run_dpath,
                step=self.state.step,
                command=messages.command(self),
                device=messages.device_name(self.accelerator.device),
                **facts,
            )
            self.log = RunLog(self.run_dpath, self.settings, config, step=self.state.step, run_id=self.state.log_run_id)
            self.state.log_run_id = self.log.run_id
            print(messages.opening(self), flush=True)
        self.accelerator.wait_for_everyone()

    def _take_run_folder(self) -> None:
        """The main process holds it from here on. Raises ValueError or OSError, in every process, where it cannot."""
        refusal = None
        if self.accelerator.is_main_process:
            try:
                self.held.enter_context(checkpoint.run_folder(self.run_dpath))
                # While the model was built, another training may have come and gone.
                if checkpoint.find_start(self.run_dpath, self.settings.resume_ckpt) != self.start_dpath:
                    raise ValueError(f"another training has saved to {self.run_dpath} meanwhile; start again")
            except (ValueError, OSError) as error:
                self.held.close()
                refusal = error
        if any(self.agreement.largest(refusal is not None)):
            raise refusal or ValueError("the main process could not take the run folder")

    # --------------------------------------------------------------------------------------------------------- the end

    def _finish(self, signal_number: int) -> None:
        self._print(messages.closing(self, signal_number))
        self.accelerator.end_training()
        if signal_number:
            sys.exit(messages.exit_code(signal_number))

    def _print(self, text: str) -> None:
        if self.accelerator.is_main_process:
            print(text, flush=True)

    def _open_token_cache(self, model: nn.Module) -> ClipDataset:
        if self.tokenizer_fpath is None:
            raise ValueError("train.token_cache is true, but a tokenizer trains on frames; set it to false")
        settings = TokenizeSettings.from_config(self.cfg.tokenize)
        recipe = tokenization.recipe_of(self.settings, settings, self.tokenizer_fpath, self.tokenizer_hash)
        command = messages.command(self, "--mode=tokenize")
        return tokenization.cached_clips(model, self.settings, recipe, self.accelerator.device, command)

    def _open_dataset(self, split: str, *, seq_step: int) -> ClipDataset:
        settings = self.settings
        return ClipDataset(
            settings.dataset_root_dpath,
            settings.dataset_name,
            split,
            settings.num_frames,
            frame_skip=settings.frame_skip,
            seq_step=seq_step,
        )
