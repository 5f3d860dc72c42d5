"""Networks of other people that metrics need: what their files are called, where they come from, how one is found.

Nothing is ever downloaded here; `download_models.py` does that when asked.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class NetworkFile:
    """One published weight file."""

    name: str
    flag: str  # of download_models.py
    sha256: str  # first digits; all that is known beforehand
    url: str

    def find(self, weights_dir: str | Path) -> Path | None:
        """The file in `weights_dir` or in torch's hub cache."""
        folders = (Path(weights_dir), _hub_cache())
        return next((folder / self.name for folder in folders if (folder / self.name).is_file()), None)

    def missing(self, weights_dir: str | Path) -> str:
        """Why there is none, and the cure."""
        return (
            f"no {self.name} in eval.weights_dir={weights_dir} nor in {_hub_cache()}; "
            f"download it with: {self.cure(weights_dir)}"
        )

    def damaged(self, fpath: Path, weights_dir: str | Path, error: Exception) -> str:
        """Why a file cannot be used, and the cure."""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"{fpath} is damaged or another network ({reason}); download it anew with: {self.cure(weights_dir)}"

    def check(self, fpath: Path) -> None:
        """Raises ValueError for a file of other content than the published one."""
        with open(fpath, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(self.sha256):
            raise ValueError(f"its hash is {found[:12]}…, expected {self.sha256[:12]}…")

    def cure(self, weights_dir: str | Path) -> str:
        return (
            f"python download_models.py --models {self.flag}, or place {self.url} at {Path(weights_dir) / self.name} "
            "by hand"
        )


INCEPTION = NetworkFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "--fid",
    "6726825d",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
# I3D of Kinetics-400 as TorchScript, equal to the TensorFlow network that FVD was defined with; the file of StyleGAN-V.
I3D = NetworkFile(
    "i3d_torchscript.pt",
    "--fvd",
    "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
    "https://huggingface.co/flateon/FVD-I3D-torchscript/resolve/main/i3d_torchscript.pt",
)
ALEXNET = NetworkFile(
    "alexnet-owt-7be5be79.pth",
    "--lpips",
    "7be5be79",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
)


def content_digits(fpath: Path) -> str:
    """The first eight digits of a file's SHA-256; some published files have them in their name."""
    with open(fpath, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def _hub_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"
