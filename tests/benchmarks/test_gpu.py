"""What of the benchmarks only a GPU can show."""

import json

import pytest
import torch

from benchmarks import kinds, rates, train_step
from benchmarks.kernels import measure
from benchmarks.step_run import largest_that_fits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none"),
]
GPU = torch.device("cuda")


def test_a_training_step_is_measured_eager_and_compiled(capsys):
    sizes = ["--small", "--train.batch_size=4", "--train.num_frames=8", "--train.num_workers=0", "--steps=5"]
    train_step.main(["--config=genie_redux_guided", *sizes, "--compile", "--profile"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    for way in ("eager", "compiled"):
        assert found[way]["frames_per_second"] == pytest.approx(32 / found[way]["seconds"], rel=1e-2)
        assert found[way]["profile"]["share"][kinds.MATRICES] > 0 and 0 < found[way]["peak_gib"] < 10
        assert 0 <= found[way]["data_wait_share"] < 1 and 0 < found[way]["mfu_square"] < 1
    assert found["speedup"] > 0 and found["machine"]["gpu"]


def test_the_batch_is_lowered_until_it_fits():
    half = torch.cuda.get_device_properties(GPU).total_memory // 2
    torch.cuda.empty_cache()
    assert largest_that_fits(lambda size: torch.empty(size * half, dtype=torch.uint8, device=GPU), (4, 3, 1)) == 1


def test_events_and_profile_agree_about_a_matrix_product():
    x = torch.randn(8192, 8192, device=GPU, dtype=torch.bfloat16)
    seconds = rates.best_seconds(lambda: x @ x, GPU)
    profile = measure(lambda: x @ x, GPU)
    assert profile.kernels[0].kind == kinds.MATRICES
    assert profile.kernels[0].seconds == pytest.approx(seconds, rel=0.3)
    assert rates.square_rate(GPU) == pytest.approx(2 * 8192**3 / seconds, rel=0.3)


def test_no_measured_rate_is_above_what_the_vendor_states():
    stated = rates.data_sheet_rate(GPU)
    if stated is None:
        pytest.skip(f"no data sheet of {torch.cuda.get_device_name()} is listed")
    assert 0.2 * stated < rates.square_rate(GPU) < stated
