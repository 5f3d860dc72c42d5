"""What decides a dataset's bytes besides its config: versions of packages, named in its `info.json`."""

import importlib.metadata

from data_generation.environment import NATIVE_SIZE
from data_generation.settings import Settings


def versions(settings: Settings) -> dict[str, str]:
    """By name, of the packages that this config's frames, actions and files pass through."""
    names = {"h5py"}
    if settings.image_size != NATIVE_SIZE:
        names |= {"pillow"}  # scales the pictures
    if settings.agent_fpath is not None:
        names |= {"torch", "numpy", "pillow"}  # round the odds by which actions are drawn; scales what the agent sees
    if settings.compression == "blosc":
        names |= {"hdf5plugin"}
    return {name: importlib.metadata.version(name) for name in sorted(names)}
