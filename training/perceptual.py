"""LPIPS: how different two frames look to AlexNet (Zhang et al., 2018), version 0.1."""

from pathlib import Path

import torch
from torch import Tensor, nn

from training.metrics import FrameMetric
from training.weight_files import ALEXNET

LPIPS_MIN_SIZE = 32  # pixels: of smaller frames AlexNet's poolings leave nothing
FRAMES_AT_ONCE = 256  # bounds the memory, whatever the batch of clips


class LPIPS(FrameMetric):
    """Of each frame at its own size, scaled to [-1, 1]: 0 for equal frames, lower is better."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    @torch.no_grad()
    def score(self, predicted: Tensor, target: Tensor) -> Tensor:
        parts = zip(predicted.split(FRAMES_AT_ONCE), target.split(FRAMES_AT_ONCE), strict=True)
        return torch.cat([self.network(*pair, normalize=True).flatten() for pair in parts])


def load_lpips(weights_dir: str | Path) -> tuple[nn.Module | None, str | None]:
    """LPIPS over AlexNet, and None; or None and the reason with its cure.

    The weights of its linear layers come with torchmetrics, those of AlexNet from torchvision's file.
    """
    fpath = ALEXNET.find(weights_dir)
    if fpath is None:
        return None, ALEXNET.missing(weights_dir)
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    network = _NoTrainLpips(net="alex", pnet_rand=True)  # random: it would fetch AlexNet itself
    try:
        state = torch.load(fpath, map_location="cpu", weights_only=True)
        for part in network.net.children():
            for number, layer in part.named_children():  # numbered as in AlexNet's features
                prefix = f"features.{number}."
                layer.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        return None, ALEXNET.damaged(fpath, weights_dir, error)
    return network.eval().requires_grad_(False), None
