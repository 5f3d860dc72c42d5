"""What a person sees of a training: banner, progress, scalars on disk and in TensorBoard or Weights & Biases."""

import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from training import checkpoint
from training.settings import TrainSettings

LINE_SECONDS = 10.0  # between progress lines where there is no terminal
LEFT_OUT = "left out of "  # before a scalar's name: how many of its values were not finite
MOST_BARS = 512  # of a histogram; Weights & Biases takes no more


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 3 min 20 s, 2 h 05 min, 3 d 04 h."""
    seconds = round(seconds)
    for unit, size, below, size_below in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // size_below:02d} {below}"
    return f"{seconds} s"


@contextmanager
def full_disk_in_words(what: str, folder: Path) -> Iterator[None]:
    """Inside, writing that fails raises ValueError with one line. what: is being written, for that line."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write {what} to {folder} ({error.strerror or error}); free disk space or set "
            "train.save_root_dpath, then go on with --train.resume_ckpt=auto"
        ) from error


class Averages:
    """Means of scalars since the last reading, summed on the device so that adding never waits for it.

    Values that are not finite are left out; the mean of none is nan.
    """

    def __init__(self):
        self.sums: dict[str, Tensor] = {}
        self.counts: Counter[str] = Counter()

    def add(self, values: dict[str, Tensor]) -> None:
        stacked = torch.stack([value.detach().float().mean() for value in values.values()])
        is_finite = torch.isfinite(stacked)
        kept, left_out = torch.where(is_finite, stacked, 0.0).unbind(), (~is_finite).float().unbind()
        self._add(dict(zip(values, kept, strict=True)))
        self._add({LEFT_OUT + name: value for name, value in zip(values, left_out, strict=True)})

    def _add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] += 1

    def copy(self) -> "Averages":
        """As it is now; adding to this one does not change the copy."""
        other = Averages()
        other.sums, other.counts = dict(self.sums), Counter(self.counts)
        return other

    def state_dict(self) -> dict[str, tuple[float, int]]:
        """Sum and count of each scalar. Waits for the device."""
        if not self.sums:
            return {}
        sums = torch.stack(list(self.sums.values())).tolist()
        return {name: (value, self.counts[name]) for name, value in zip(self.sums, sums, strict=True)}

    def load_state_dict(self, state: dict[str, tuple[float, int]], device: torch.device) -> None:
        self.sums = {name: torch.tensor(value, device=device) for name, (value, _) in state.items()}
        self.counts = Counter({name: count for name, (_, count) in state.items()})

    def read(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """The means; with an accelerator over all processes, which must then all call this. Waits for the device."""
        if not self.sums:
            return {}
        names = sorted(name for name in self.sums if not name.startswith(LEFT_OUT))
        sums = torch.stack([self.sums[name] for name in names])
        left_out = torch.stack([self.sums[LEFT_OUT + name] for name in names])
        counts = torch.tensor([float(self.counts[name]) for name in names], device=sums.device) - left_out
        if accelerator is not None:
            sums, counts = accelerator.reduce(sums, "sum"), accelerator.reduce(counts, "sum")
        return dict(zip(names, (sums / counts).tolist(), strict=True))


class Stretch:
    """Where the time since the last reading went: steps, waiting for data; validation and saving are taken out."""

    def __init__(self):
        self.steps = 0
        self.waited = 0.0
        self._began = time.perf_counter()
        self._paused = 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began - self._paused

    @property
    def wait_share(self) -> float:
        return self.waited / self.seconds

    @contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @contextmanager
    def pausing(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began


class RunLog:
    """Scalars by step into `logs/metrics.jsonl` and the chosen logger. Only the main process makes one.

    A resumed run passes the step it goes on from and the id it had: later lines of a killed run are taken back.
    """

    def __init__(self, run_dpath: Path, settings: TrainSettings, config: dict, *, step: int, run_id: str | None):
        self.run_id = run_id
        self.writer: Any = None
        self.wandb: Any = None
        self.folder = folder = run_dpath / checkpoint.LOGS
        folder.mkdir(parents=True, exist_ok=True)
        self.fpath = folder / checkpoint.METRICS
        self._take_back(step)
        if settings.logger == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter  # a second to import

            events = folder / "tensorboard"
            goes_on = step > 0 or events.is_dir()  # or was killed before its first checkpoint
            self.writer = SummaryWriter(str(events), purge_step=step + 1 if goes_on else None)
        elif settings.logger == "wandb":
            self._start_wandb(settings, config)

    def _take_back(self, step: int) -> None:
        if self.fpath.exists():
            lines = [line for line in self.fpath.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= step and step]
            checkpoint.write_text(self.fpath, "".join(line + "\n" for line in kept))

    def _start_wandb(self, settings: TrainSettings, config: dict) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                "train.logger=wandb needs the package wandb: pip install wandb, or --train.logger=tensorboard"
            ) from error
        os.makedirs(settings.wandb_dpath, exist_ok=True)
        try:
            self.wandb = wandb.init(
                project=settings.wandb_project,
                name=settings.wandb_name,
                dir=settings.wandb_dpath,
                mode=settings.wandb_mode,
                id=self.run_id,
                resume="allow",
                config=config,
            )
        except wandb.errors.Error as error:
            raise ValueError(
                f"Weights & Biases does not start ({' '.join(str(error).split())}); log in with wandb login, or set "
                "--train.wandb_mode=offline or --train.logger=tensorboard (with --train.resume_ckpt=auto)"
            ) from error
        self.run_id = self.wandb.id

    def scalars(self, step: int, seconds: float, values: dict[str, float]) -> None:
        """One line: the step, the seconds since the training began, and the values by their full names."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}  # JSON knows no nan
        with full_disk_in_words("logs", self.folder):
            with open(self.fpath, "a") as file:
                file.write(json.dumps({"step": step, "seconds": round(seconds, 3), **values}) + "\n")
            if self.writer is not None:
                for name, value in values.items():
                    self.writer.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(values, step=step)

    def pictures(self, step: int, fpaths: list[Path]) -> None:
        """GIFs and PNGs as they are: TensorBoard's image page plays a GIF, so no video has to be encoded."""
        if self.writer is not None:
            from tensorboard.compat.proto.summary_pb2 import Summary

            for fpath in fpaths:
                with Image.open(fpath) as picture:
                    width, height = picture.size
                image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=fpath.read_bytes())
                summary = Summary(value=[Summary.Value(tag=_picture_name(fpath), image=image)])
                self.writer.file_writer.add_summary(summary, step)
        if self.wandb is not None:
            import wandb

            self.wandb.log(
                {
                    _picture_name(fpath): wandb.Video(str(fpath), format="gif")
                    if fpath.suffix == ".gif"
                    else wandb.Image(str(fpath))
                    for fpath in fpaths
                },
                step=step,
            )

    def histograms(self, step: int, counts: dict[str, Tensor]) -> None:
        """How often each number 0 … K-1 was chosen. counts: (K,) by name."""
        for name, values in counts.items():
            bars, edges = _bars(values)
            if self.writer is not None:
                numbers = np.arange(len(values), dtype=np.float64)
                self.writer.add_histogram_raw(
                    name,
                    min=0.0,
                    max=float(len(values) - 1),
                    num=float(bars.sum()),
                    sum=float((values.numpy() * numbers).sum()),
                    sum_squares=float((values.numpy() * numbers**2).sum()),
                    bucket_limits=edges[1:].tolist(),
                    bucket_counts=bars.tolist(),
                    global_step=step,
                )
            if self.wandb is not None:
                import wandb

                self.wandb.log({name: wandb.Histogram(np_histogram=(bars, edges))}, step=step)

    def close(self) -> None:
        if self.writer is not None:
            with full_disk_in_words("logs", self.folder):  # also in place of its own words, where it failed before
                self.writer.close()
        if self.wandb is not None:
            self.wandb.finish()


def _picture_name(fpath: Path) -> str:
    return f"samples/{fpath.stem}" + ("" if fpath.suffix == ".gif" else "_strip")


def _bars(counts: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Bars (N,) of neighbouring numbers taken together, and their edges (N + 1,); N <= MOST_BARS."""
    width = -(-len(counts) // MOST_BARS)
    starts = np.arange(0, len(counts), width)
    edges = np.append(starts, len(counts)) - 0.5
    return np.add.reduceat(counts.numpy(), starts), edges


class Progress:
    """A bar on a terminal, elsewhere a line every ten seconds at most; silent in all but the main process."""

    def __init__(self, first_step: int, num_steps: int, *, shown: bool):
        self.num_steps = num_steps
        self.shown = shown
        self.spoke_at = -LINE_SECONDS  # the first numbers are shown at once
        self.bar = None
        if shown and sys.stdout.isatty():
            self.bar = tqdm(
                total=num_steps, initial=first_step, unit="step", file=sys.stdout, dynamic_ncols=True, smoothing=0.05,
                bar_format="{n_fmt}/{total_fmt} |{bar}| {desc}",
            )  # fmt: skip

    @property
    def is_due(self) -> bool:
        """Whether the main process would show numbers now; reading them makes the host wait for the device."""
        pause = 1.0 if self.bar is not None else LINE_SECONDS
        return self.shown and time.monotonic() - self.spoke_at >= pause

    def step(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def show(
        self, step: int, *, loss: float, lr: float, frames_per_second: float, mfu: float, seconds_left: float
    ) -> None:
        """Show numbers if the last ones are old enough or these are the last. mfu: share of the machine's rate."""
        if not self.shown or (not self.is_due and step < self.num_steps):
            return
        self.spoke_at = time.monotonic()
        speed = f"{frames_per_second:,.0f} frames/s ({mfu:.1%} of the matrix rate)"
        numbers = f"loss {loss:.4f}  lr {lr:.2e}  {speed}  {duration(seconds_left)} left"
        if self.bar is not None:
            self.bar.set_description_str(numbers)
        else:
            print(f"step {step}/{self.num_steps}  {numbers}", flush=True)

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.write(text)
        elif self.shown:
            print(text, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
