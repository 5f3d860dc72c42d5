"""Action following: does a dream show the actions that were asked for? A classifier that learned to read actions from
real transitions reads them from dreamt ones (after AVID, Rigter et al., 2024).

The classifier learns from the training split of a dataset, once: it is kept beside the evaluations, under a name that
tells the data and the recipe apart.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from data.clips import Clip, ClipDataset, training_batches
from training.intervals import mean_and_interval
from training.metrics import ClipValues, to_bytes
from training.settings import EvalSettings

RECIPE = 1  # goes up whenever another classifier would come out
FOLDER = "action_readers"
CLIP_FRAMES = 3  # of a training clip: one transition without a past, one with
BATCH, LEARNING_RATE, WEIGHT_DECAY, WARM_UP = 16, 3e-3, 1e-2, 0.1
WIDTH, HIDDEN, NUM_HALVINGS = 16, 128, 4
LUMINANCE = (0.299, 0.587, 0.114)


class ActionReader(nn.Module):
    """Inverse dynamics: the action between two frames, from them and the one before.

    That one shows the speed, without which a push cannot be told from drifting on. A clip's first transition has none;
    there the first frame stands twice.
    """

    def __init__(self, image_size: tuple[int, int], num_actions: int):
        super().__init__()
        widths = (3, WIDTH, WIDTH, 2 * WIDTH, 2 * WIDTH)
        layers: list[nn.Module] = []
        for number in range(NUM_HALVINGS):
            kernel = 5 if number == 0 else 3
            layers += [
                nn.Conv2d(widths[number], widths[number + 1], kernel, stride=2, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(widths[number + 1]),
                nn.ReLU(),
            ]
        cells = [-(-size // 2**NUM_HALVINGS) for size in image_size]
        layers += [nn.Flatten(), nn.Linear(widths[-1] * cells[0] * cells[1], HIDDEN), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(HIDDEN, num_actions))

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, C, H, W) float in [0, 1] -> logits (B, T-1, number of actions)."""
        grey = (frames * frames.new_tensor(LUMINANCE)[:, None, None]).sum(2)
        before, now, after = torch.cat([grey[:, :1], grey[:, :-2]], 1), grey[:, :-1], grey[:, 1:]
        pictures = torch.stack([now - before, after - now, now - 0.5], dim=2)
        return self.layers(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])

    @torch.no_grad()
    def read(self, frames: Tensor) -> Tensor:
        """The likeliest action of every transition, (B, T-1). Frames are rounded to bytes, as the real ones are."""
        return self(to_bytes(frames).float() / 255).argmax(-1)


class ActionFollowing:
    """How often the reader finds the recorded action in a transition to a predicted frame.

    In a world with recorded actions that is the action that was given. The dream of a latent world is given the codes
    inferred from the true frames: they stand for what really happened, so the recorded action is looked for as well.
    Beside it the same on the true transitions, which no reader can all tell (a button without effect looks like none),
    and on those that have been through the tokenizer and back, which may have lost what tells; the ratio of the errors
    on dream and truth (AVID's action error ratio), and the accuracy of always naming the most frequent action.
    """

    def __init__(self, reader: nn.Module, num_given: int):
        self.reader, self.num_given = reader, num_given
        self.dreamt, self.ceiling, self.real, self.actions = (ClipValues() for _ in range(4))

    def update(self, dreamt: Tensor, ceiling: Tensor, clip: Clip, numbers: Sequence[int]) -> None:
        """dreamt, ceiling: what is predicted, (B, K, C, H, W); clip: the true one, with the given frames first."""
        given = clip.actions[:, self.num_given - 1 :]
        prompt, future = clip.frames[:, : self.num_given], clip.frames[:, self.num_given :]
        for values, frames in ((self.dreamt, dreamt), (self.ceiling, ceiling), (self.real, future)):
            found = self.reader.read(torch.cat([prompt, frames], dim=1))
            values.add(numbers, found[:, self.num_given - 1 :] == given)
        self.actions.add(numbers, given)

    def gather(self) -> None:
        for values in (self.dreamt, self.ceiling, self.real, self.actions):
            values.gather()

    @property
    def values(self) -> np.ndarray:
        """(N, K): 1 where the action was found in the dream."""
        return self.dreamt.values

    def compute(self) -> dict:
        if not self.values.size:
            return {}
        dreamt, real = mean_and_interval(self.values.mean(axis=1)), float(self.real.values.mean())
        return {
            "action_following": dreamt["mean"],
            "action_following_ci95": dreamt["ci95"],
            "action_following_real": real,
            "ceiling_action_following": float(self.ceiling.values.mean()),
            "action_following_majority": float(np.bincount(self.actions.values.astype(int).ravel()).max())
            / self.actions.values.size,
            "action_error_ratio": (1 - dreamt["mean"]) / (1 - real) if real < 1 else None,
        }


# ---------------------------------------------------------------------------------------------------------- the reader


def shared_reader(
    settings: EvalSettings, dataset: ClipDataset, state: PartialState
) -> tuple[ActionReader | None, str | None]:
    """The reader for a dataset's actions on this process's device, and None; or None and the reason with its cure.

    It is loaded, or trained by the main process, which takes a minute or two on a CPU.
    """
    found: list = [None, None]
    if state.is_main_process:
        found = list(_state_or_reason(settings, dataset, state.device))
    weights, reason = broadcast_object_list(found)
    if weights is None:
        return None, reason
    reader = ActionReader(dataset.image_size, dataset.num_actions)
    reader.load_state_dict(weights)
    return reader.to(state.device).eval(), None


def _state_or_reason(
    settings: EvalSettings, dataset: ClipDataset, device: torch.device
) -> tuple[dict[str, Tensor] | None, str | None]:
    name = settings.reader_dataset_name
    cure = "set eval.reader_dataset_name to a dataset with a split train and the same actions"
    if not dataset.num_actions:
        return None, f"eval.dataset_name={settings.dataset_name} has no recorded actions to read"
    if name is None:
        return None, f"eval.reader_dataset_name is null; {cure}"
    try:
        lessons = ClipDataset(settings.dataset_root_dpath, name, "train", CLIP_FRAMES, frame_skip=dataset.frame_skip)
    except (ValueError, OSError) as error:
        return None, f"eval.reader_dataset_name={name} cannot be read ({error}); {cure}"
    if lessons.episodes.action_names != dataset.episodes.action_names or lessons.image_size != dataset.image_size:
        return None, f"eval.reader_dataset_name={name} has other actions or frames than {settings.dataset_name}; {cure}"
    fpath = reader_fpath(settings, lessons)
    if not fpath.is_file():
        _write(fpath, train_reader(lessons, settings.reader_steps, device, show_progress=True))
    try:
        return load_file(fpath), None
    except SafetensorError as error:
        raise ValueError(f"{fpath} is damaged ({error}); remove it, and it is made anew") from error


def reader_fpath(settings: EvalSettings, lessons: ClipDataset) -> Path:
    """Where the reader of these data and this recipe lies: below `eval.save_root_dpath`."""
    info = lessons.episodes.info
    facts = [RECIPE, settings.reader_steps, lessons.frame_skip, info["action_names"], info["splits"]["train"]]
    digits = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    return Path(settings.save_root_dpath) / FOLDER / f"{lessons.episodes.name}-{digits}.safetensors"


def train_reader(
    lessons: ClipDataset, num_steps: int, device: torch.device, *, show_progress: bool = False
) -> ActionReader:
    """A reader that has seen `num_steps` batches of real transitions. Always the same one on the same device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reader = ActionReader(lessons.image_size, lessons.num_actions).to(device)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=max(2, num_steps), pct_start=WARM_UP
    )
    batches = training_batches(lessons, batch_size=BATCH, seed=0)
    title = f"learning to read actions of {lessons.episodes.name}"
    for _ in tqdm(range(num_steps), desc=title, unit="step", disable=not show_progress):
        clip = next(batches).to(device)
        loss = F.cross_entropy(reader(clip.frames).flatten(0, 1), clip.actions.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return reader.eval()


def _write(fpath: Path, reader: ActionReader) -> None:
    fpath.parent.mkdir(parents=True, exist_ok=True)
    partial = fpath.with_name(f".{fpath.name}.{os.getpid()}.partial")
    save_file({name: value.cpu().contiguous() for name, value in reader.state_dict().items()}, partial)
    os.replace(partial, fpath)
