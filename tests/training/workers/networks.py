"""Stand-ins of random weights for the published networks that metrics need, in files of the published names.

The packages that these come from take a second to import, so whoever needs none of them does not.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from training import frechet, preparation
from training.weight_files import ALEXNET, I3D, INCEPTION


class TinyI3D(nn.Module):
    """What the TorchScript file promises: clips (B, 3, T, 224, 224) in [-1, 1] to 400 numbers, and three switches."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv3d(3, 400, (4, 32, 32), stride=(2, 32, 32))

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        assert not rescale and not resize and return_features
        assert x.shape[3] == 224 and x.shape[4] == 224
        return torch.relu(self.layer(x)).mean((2, 3, 4))


class TinyInception(nn.Module):
    """What FID asks of Inception, uint8 pictures to 2048 numbers, in a thousandth of its time."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 2048)

    def forward(self, pictures: Tensor) -> Tensor:
        assert pictures.dtype == torch.uint8
        small = nn.functional.interpolate(pictures.float() / 255, size=(8, 8), mode="area")
        return torch.relu(self.layer(small.flatten(1)))


def write_inception(folder: Path) -> None:
    from torch_fidelity import feature_extractor_inceptionv3 as module

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), folder / INCEPTION.name)


def write_i3d(folder: Path) -> None:
    torch.manual_seed(0)
    torch.jit.script(TinyI3D()).save(str(folder / I3D.name))


def write_alexnet(folder: Path) -> None:
    """Its convolutions alone; the published file has the classifier besides."""
    from torchvision.models import alexnet

    torch.manual_seed(0)
    state = alexnet().state_dict()
    torch.save({name: value for name, value in state.items() if name.startswith("features.")}, folder / ALEXNET.name)


def write_all(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for write in (write_i3d, write_alexnet):
        write(folder)
    return folder


def use_stand_ins(patch: pytest.MonkeyPatch) -> None:
    """Take an I3D of another hash than the published one, and the tiny Inception for the published one."""
    torch.manual_seed(0)
    inception = TinyInception()
    patch.setattr(frechet, "I3D", replace(I3D, sha256=""))
    patch.setattr(preparation, "load_inception", lambda weights_dir: (inception, None))
