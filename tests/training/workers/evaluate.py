"""Started by tests on two processes: evaluates what a saved configuration says, and pools features."""

import sys

import pytest
import torch
from omegaconf import OmegaConf

from training.evaluation import run
from training.frechet import FeatureStatistics
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


if __name__ == "__main__":
    pool_features()
    with pytest.MonkeyPatch.context() as patch:
        networks.use_stand_ins(patch)
        run(OmegaConf.load(sys.argv[1]))
