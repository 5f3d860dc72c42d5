"""A trained player: the network that looks at the game, its weight file, and the policy that records with it.

Data generation imports torch here and where agents are trained, nowhere else; without an agent it runs without torch.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FORMAT = 1
HEADER = "lamp_agent"
NUM_LOOKS = 2  # pictures that the network sees: the current one and the one at its previous decision


# ------------------------------------------------------------------------------------------------------- the network


@dataclass(frozen=True)
class Architecture:
    """Sizes of an `AgentNetwork`.

    channels: width of each stage; the first shrinks the picture by stem_stride, every other one halves it.
    blocks: residual blocks per stage.
    """

    image_size: int
    num_actions: int
    channels: tuple[int, ...]
    blocks: int
    stem_kernel: int
    stem_stride: int
    num_features: int


class ResidualBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(torch.relu(x))))


class Eyes(nn.Module):
    """Pictures (B, 2·3, H, W), uint8 or float in [0, 255], to features (B, F).

    A residual convolutional network of the IMPALA type (Espeholt et al., 2018, figure 3): stages of a convolution and
    residual blocks. Where that one convolves at full size and pools, ours strides, which costs a small part of it.
    """

    def __init__(self, architecture: Architecture):
        super().__init__()
        a = architecture
        size, width = (a.image_size - 2 + a.stem_kernel % 2) // a.stem_stride + 1, a.channels[0]
        self.stem = nn.Conv2d(
            3 * NUM_LOOKS, width, a.stem_kernel, stride=a.stem_stride, padding=(a.stem_kernel - 1) // 2
        )
        stages = [ResidualBlock(width) for _ in range(a.blocks)]
        for channels in a.channels[1:]:
            stages.append(nn.Conv2d(width, channels, 3, stride=2, padding=1))
            stages += [ResidualBlock(channels) for _ in range(a.blocks)]
            size, width = -(-size // 2), channels
        self.stages = nn.Sequential(*stages, nn.ReLU(), nn.Flatten())
        self.read_out = nn.Linear(width * size * size, a.num_features)

    def forward(self, pictures: Tensor) -> Tensor:
        device = pictures.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        # Channels last is what makes narrow convolutions fast. The weights are scaled instead of the many pixels.
        x = pictures.to(dtype).contiguous(memory_format=torch.channels_last)
        stem = self.stem
        x = F.conv2d(x, stem.weight / 255, stem.bias, stride=stem.stride, padding=stem.padding)
        return torch.relu(self.read_out(self.stages(x)))


class AgentNetwork(nn.Module):
    """Pictures (B, 2·3, H, W) uint8 to action scores (B, A): unnormalised log-probabilities."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        self.eyes = Eyes(architecture)
        self.head = nn.Linear(architecture.num_features, architecture.num_actions)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.eyes(pictures))


# ------------------------------------------------------------------------------------------------------ the weight file


class Agent(NamedTuple):
    """A player as its file has it: what it plays, how often it decides, and how it was trained."""

    network: AgentNetwork
    game: str
    action_names: tuple[str, ...]
    decision_interval: int  # frames for which it holds an action
    history: dict[str, Any]  # how it was trained and what it scored; for people


def save_agent(fpath: Path, agent: Agent) -> None:
    """Write a player as one safetensors file: half-precision weights, everything else as JSON in its header.

    Raises OSError with one line where that fails; a file of before stays as it was.
    """
    about = agent._asdict() | {"format": FORMAT, "network": asdict(agent.network.architecture)}
    weights = {name: weight.detach().cpu().half().contiguous() for name, weight in agent.network.state_dict().items()}
    fpath.parent.mkdir(parents=True, exist_ok=True)
    temporary = fpath.with_name(f".{fpath.name}.tmp")
    try:
        save_file(weights, temporary, metadata={HEADER: json.dumps(about)})
        temporary.replace(fpath)
    except (SafetensorError, OSError) as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {fpath} ({' '.join(str(error).split())}); free some space") from None


def load_agent(fpath: Path | str) -> Agent:
    """Read a player. Raises FileNotFoundError or ValueError with one line for anything but a file of `save_agent`."""
    if not Path(fpath).is_file():
        raise FileNotFoundError(
            f"agent_fpath={fpath} does not exist; train one with python data_generation/train_agent.py"
        )
    try:
        with safe_open(fpath, "pt") as file:
            about = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"agent_fpath={fpath} cannot be read: {error}") from None
    if about.get("format") != FORMAT:
        raise ValueError(
            f"agent_fpath={fpath} is no agent of format {FORMAT} (it has {about.get('format')}); "
            "expected a file that train_agent.py wrote"
        )
    sizes = about["network"]
    network = AgentNetwork(Architecture(**sizes | {"channels": tuple(sizes["channels"])}))
    network.load_state_dict(weights)
    return Agent(
        network.eval().requires_grad_(False),
        about["game"],
        tuple(about["action_names"]),
        about["decision_interval"],
        about["history"],
    )


# ----------------------------------------------------------------------------------------------------------- the policy


def side_by_side(now: np.ndarray, before: np.ndarray) -> Tensor:
    """What the network sees: pictures (B, H, W, 3) of now and of its last decision as (B, 2·3, H, W) uint8."""
    return torch.from_numpy(np.concatenate([now, before], axis=3)).permute(0, 3, 1, 2)


class AgentPolicy:
    """Plays `batch_size` levels at once with a trained network, sampling its actions.

    With probability `epsilon` a decision is a random action instead, for coverage, drawn by `weights` (relative
    frequencies; None is uniform); with probability `sticky` it is the previous action. `greedy` takes the most likely
    action. Draws depend on (seed, level) alone. The network always runs on the full batch, with one thread, so
    that its rounding, and with it every action, is the same whoever computes it on machines of one kind.
    """

    def __init__(
        self,
        agent: Agent,
        num_steps: int,
        *,
        seed: int,
        epsilon: float,
        sticky: float,
        weights: list[float] | None,
        batch_size: int,
        greedy: bool = False,
    ):
        self.batch_size = batch_size
        self._agent, self._num_steps, self._seed = agent, num_steps, seed
        self._epsilon, self._sticky, self._greedy = epsilon, sticky, greedy
        self._random_odds = np.ones(len(agent.action_names)) if weights is None else np.asarray(weights, np.float64)
        size = agent.network.architecture.image_size
        self._before = np.zeros((batch_size, size, size, 3), np.uint8)
        torch.set_num_threads(1)

    def start(self, levels: Sequence[int]) -> None:
        generators = (np.random.Generator(np.random.PCG64([self._seed, level])) for level in levels)
        num_decisions = -(-self._num_steps // self._agent.decision_interval)
        # Three draws a decision: whether it is random, whether it is sticky, and which action.
        self._draws = np.zeros((3, num_decisions, self.batch_size))
        for row, generator in enumerate(generators):
            self._draws[:, :, row] = generator.random((3, num_decisions))
        self._step = 0
        self._actions = np.zeros(self.batch_size, np.int64)

    def act(self, frames: Sequence[np.ndarray], playing: np.ndarray) -> np.ndarray:
        """Actions (batch_size,) for frames (H, W, 3) uint8 of as many levels; rows that are not `playing` stay 0."""
        decision, is_held = divmod(self._step, self._agent.decision_interval)
        if not is_held:
            self._actions = self._decide(self._seen(frames, playing), decision)
        self._step += 1
        return self._actions

    def _seen(self, frames: Sequence[np.ndarray], playing: np.ndarray) -> np.ndarray:
        seen = np.zeros_like(self._before)
        size = seen.shape[1]
        for row in np.flatnonzero(playing):
            frame = frames[row]
            if frame.shape[0] != size:
                frame = np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BOX))
            seen[row] = frame
        return seen

    def _decide(self, seen: np.ndarray, decision: int) -> np.ndarray:
        if decision == 0:
            self._before = seen
        with torch.inference_mode():
            scores = self._agent.network(side_by_side(seen, self._before)).numpy().astype(np.float64)
        self._before = seen
        is_random, is_sticky, choice = self._draws[:, decision]
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        if self._greedy:
            odds = (odds == 1).astype(np.float64)
        odds[is_random < self._epsilon] = self._random_odds
        bounds = np.cumsum(odds, axis=1)
        actions = (choice[:, None] * bounds[:, -1:] >= bounds).sum(axis=1)
        if decision > 0:
            actions = np.where(is_sticky < self._sticky, self._actions, actions)
        return actions
