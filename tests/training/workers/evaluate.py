"""Started by tests on two processes: evaluates what ROOT/two.yaml says, and pools features."""

from pathlib import Path

import pytest
import torch
from accelerate.utils import gather_object
from omegaconf import OmegaConf

from training.evaluation import run
from training.frechet import FID, FeatureStatistics
from training.preparation import processes

from . import networks


def pool_features() -> None:
    """Each process sees every second row; all must end with the statistics of the whole.

    Of 16 features all rows are kept, of 6 each process alone would keep its own, of 3 sums are kept everywhere.
    """
    state = processes()
    assert state.num_processes == 2
    for dim in (3, 6, 16):
        features = torch.rand(9, dim, generator=torch.Generator().manual_seed(0))
        whole, pooled = FeatureStatistics(dim), FeatureStatistics(dim)
        whole.update(features)
        pooled.update(features[state.process_index :: state.num_processes])
        pooled.gather(state.device)
        for expected, found in zip(whole.moments(), pooled.moments(), strict=True):
            assert torch.allclose(expected, found, rtol=1e-10, atol=1e-15), (expected, found)
    if state.is_main_process:
        print("pooled features are those of the whole")


def pool_distances() -> None:
    """The second process has no clips, and knows of no row that the first one has."""
    state = processes()
    torch.manual_seed(0)
    fid, frames = FID(networks.TinyInception(), nearest=False), torch.rand(2, 3, 3, 8, 8)
    if state.is_main_process:
        fid.update_true(frames, [0, 1])
        fid.update("", frames.flip(0) ** 2, [0, 1])
        fid.update_still("copy_last_", frames[:, :1], 3)
    fid.gather()
    found = fid.compute()
    assert found["fid"] > 0 and found["copy_last_fid"] > 0 and found["fid_ci95"] is not None, found
    (first, second) = gather_object([found])
    assert first == second
    if state.is_main_process:
        print("a process without clips takes part")


def main(root: str) -> None:
    pool_features()
    pool_distances()
    with pytest.MonkeyPatch.context() as patch:
        networks.use_stand_ins(patch)
        run(OmegaConf.load(Path(root, "two.yaml")))
