"""Started by tests on two processes: evaluates what a saved configuration says, and pools features."""

import sys

import torch
from omegaconf import OmegaConf

from training.evaluation import run
from training.metrics import FeatureStatistics
from training.preparation import processes


def pool_features() -> None:
    """Each process sees every second row; all must end with the statistics of the whole."""
    state = processes()
    features = torch.rand(9, 4, generator=torch.Generator().manual_seed(0))
    whole, pooled = FeatureStatistics(4), FeatureStatistics(4)
    whole.update(features)
    pooled.update(features[state.process_index :: state.num_processes])
    pooled.gather(state.device)
    for expected, found in zip(whole.moments(), pooled.moments(), strict=True):
        assert state.num_processes == 2
        assert torch.allclose(expected, found, rtol=1e-12, atol=0), (expected, found)
    if state.is_main_process:
        print("pooled features are those of the whole")


if __name__ == "__main__":
    pool_features()
    run(OmegaConf.load(sys.argv[1]))
