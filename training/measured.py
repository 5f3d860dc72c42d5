"""What an evaluation left in its folder: results, values by clip, latent actions, pictures. Reports are made of it."""

import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

METRICS, BY_CLIP, LATENTS, SAMPLES = "metrics.json", "by_clip.npz", "latents.npz", "samples"


class Measured(NamedTuple):
    """One model's evaluation. Arrays are absent where the evaluation did not write them."""

    results: dict[str, Any]
    by_clip: dict[str, np.ndarray]  # (N,) or (N, T) each, in the order of the clips' numbers
    latents: dict[str, np.ndarray]  # vectors (N, D), codes (N,), actions (N,), embedding (N, 2)
    folder: Path


def read(fpath: Path) -> dict[str, Measured]:
    """The evaluations that a `metrics.json` holds, by model name, with what lies beside it.

    Raises FileNotFoundError or ValueError with one line for a file that is missing or is none.
    """
    if not fpath.is_file():
        raise FileNotFoundError(f"no results at {fpath}; --mode=eval writes a metrics.json")
    try:
        found = json.loads(fpath.read_text())
    except ValueError as error:
        raise ValueError(f"{fpath} is not readable as JSON ({error}); --mode=eval writes it again") from error
    if not isinstance(found, dict) or not all(isinstance(value, dict) and "psnr" in value for value in found.values()):
        raise ValueError(f"{fpath} does not hold results; expected the metrics.json of an evaluation: {{model: {{…}}}}")
    # Beside the results of several models lies nothing that could be one model's own.
    by_clip, latents = ({}, {}) if len(found) > 1 else (arrays(fpath.parent / name) for name in (BY_CLIP, LATENTS))
    return {name: Measured(results, by_clip, latents, fpath.parent) for name, results in found.items()}


def arrays(fpath: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file, none where there is no such file; ValueError for a damaged one."""
    if not fpath.is_file():
        return {}
    try:
        with np.load(fpath) as file:
            return dict(file)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{fpath} is damaged ({error}); --mode=eval writes it again") from error
