"""The speed of dreaming is measured in every way that the device has."""

import pytest
import torch

from benchmarks import rollout
from models.interfaces import Sampling
from tests.models import builders
from tests.models.builders import settle

SIZES = {"num_samples": 2, "seconds": 0.0}


def measure_all(names, device):
    torch.manual_seed(0)
    world = settle(builders.world("guided-in-place")).to(device)
    ways, sampling = rollout.ways_on(world, names, device), Sampling(steps=2)
    with torch.no_grad():
        rollout.check_same_tokens(world, sampling, 4, device)
        return rollout.measure(world, ways, 1, sampling, 4, device=device, **SIZES)


def test_without_a_gpu_what_needs_one_is_left_out(capsys):
    rows = measure_all(["graphs", "session", "compiled", "recomputed"], torch.device("cpu"))
    assert [(row["way"], row["frame"]) for row in rows] == [("session", 2), ("session", 4), ("recomputed", 5)]
    left_out = capsys.readouterr().out.splitlines()
    assert left_out == [f"{way}: left out, graphs are recorded on a GPU" for way in ("graphs", "compiled")]
    found = rollout.result("tiny", 4, rows)
    assert (found["way"], found["reference_way"], found["inference_steps"]) == ("session", "recomputed", 2)
    assert found["value"] == pytest.approx(rows[1]["frames_per_second"], abs=0.01)
    assert found["reference"] == pytest.approx(rows[2]["frames_per_second"], abs=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none")
def test_a_session_is_measured_eager_by_graphs_and_compiled():
    rows = measure_all(["session", "graphs", "compiled"], torch.device("cuda"))
    assert [row["way"] for row in rows] == [way for way in ("session", "graphs", "compiled") for _ in range(2)]
    assert all(row["frames_per_second"] > 0 for row in rows)
    assert rollout.result("tiny", 4, rows)["way"] == "graphs"
