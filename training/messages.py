"""The sentences that a training says at its start and its end."""

import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig

from data.tokens import CachedClips
from training import accelerate_config, checkpoint, flops
from training.logs import duration
from training.objectives import MODEL
from training.zero import ZeroAccelerator

if TYPE_CHECKING:
    from training.trainer import Trainer


def opening(run: "Trainer") -> str:
    """The start banner: what runs on what, how much of it, where it goes."""
    settings, accelerator = run.settings, run.accelerator
    device = device_name(accelerator.device)
    precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    height, width = run.dataset.image_size
    count = sum(parameter.numel() for parameter in run.state.weights.values())
    length = f"{settings.num_train_steps:,} steps"
    if settings.max_train_seconds is not None:
        length += f", or {duration(settings.max_train_seconds)} if that ends first"
    how = ", sharded" * (settings.sharding is not None) + ", compiled" * settings.compile
    if isinstance(accelerator, ZeroAccelerator):
        how = f", DeepSpeed ZeRO {accelerator.stage}{how}"
    facts = {
        "device": f"{device}, {precision}, {accelerator.num_processes} process(es){how}",
        "parameters": f"{count:,} trainable",
        "data": f"{settings.dataset_name}: {len(run.dataset):,} clips of {settings.num_frames} frames {height}x{width}",
        "batch": f"{settings.batch_size} clips x {settings.grad_accum} accumulated x {accelerator.num_processes} "
        f"process(es) = {run.clips_per_step} clips a step",
        "work": f"{flops.in_words(run.flops_per_clip * run.clips_per_step)} a step; "
        f"{run.rate.source}: {flops.in_words(run.rate.flops)}/s",
        "learning rate": run.state.parts[MODEL].schedule.in_words(),
        "length": f"{length}; the expected time follows after the first steps",
        "run folder": str(run.run_dpath),
    }
    if isinstance(run.dataset, CachedClips):
        facts["data"] += f", tokens from {run.dataset.cache.folder}"
    if run.state.step:
        facts["going on"] = f"from step {run.state.step} of {run.start_dpath.parent}"
        if run.changes:
            facts["going on"] += f"; changed: {', '.join(run.changes)}"
    name_width = max(len(name) for name in facts)
    lines = [f"  {name:<{name_width}}  {fact}" for name, fact in facts.items()]
    return "\n".join([f"Training {run.cfg.model}", *lines])


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def nothing_to_do(run: "Trainer") -> str:
    return (
        f"{run.run_dpath} is finished at step {run.state.step}, nothing to do; "
        "a larger --train.num_train_steps or --train.max_train_seconds goes on"
    )


def closing(run: "Trainer", signal_number: int) -> str:
    """The last line: what was reached, where it is and the command to type next. signal_number: 0 at the end."""
    state = run.state
    saved = run.run_dpath / checkpoint.step_name(state.step)
    if signal_number:
        cause = "Ctrl-C" if signal_number == signal.SIGINT else signal.Signals(signal_number).name
        fpath = accelerate_config.read()[0]
        words = [*([f"--accelerate_config={fpath}"] if fpath else []), "--train.resume_ckpt=auto"]
        kept = f"saved {saved}" if state.step else "no step was finished"
        return f"stopped by {cause} at step {state.step}; {kept}; go on with: {command(run, *words)}"
    if run.settings.keep_best is not None and state.best is not None:
        saved = run.run_dpath / checkpoint.step_name(state.best[1])
    mode, weights = "--mode=eval", f"--eval.model_fpath={saved}"
    best = "" if state.best is None else "best validation {2} {0:.4f} at step {1}; ".format(*state.best)
    return f"{best}weights in {saved}; evaluate with: {command(run, mode, weights)}"


def exit_code(signal_number: int) -> int:
    """Of a training that saved because of a signal: as shells have it for Ctrl-C, success for what clusters send."""
    return 130 if signal_number == signal.SIGINT else 0


def command(run: "Trainer", *words: str) -> str:
    """`same_command` of a training."""
    return same_command(run.cfg, run.accelerator.num_processes, *words)


def same_command(cfg: DictConfig, num_processes: int, *words: str) -> str:
    """The command that was typed, with these words in place of those for the same keys."""
    typed = [f"--config={cfg.model}.yaml", f"--name={cfg.name}"]
    if Path(sys.argv[0]).parts[-2:] == ("training", "main.py"):  # else a program of the user's own called us
        typed = sys.argv[1:]
    if num_processes > 1:
        words = (f"--num_processes={num_processes}", *words)
    replaced = {word.partition("=")[0] for word in words}
    kept = [word for word in typed if word.partition("=")[0] not in replaced]
    return shlex.join(["bash", "run.sh", *kept, *words])
