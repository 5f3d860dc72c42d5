"""The measurement of a training step: what it counts is known by hand, and the command runs at a small size."""

import json

import pytest
import torch
from torch import nn

from benchmarks import kinds, step_inputs, train_step
from benchmarks.kernels import measure
from benchmarks.rates import data_sheet_rate
from benchmarks.step_run import Stepper, largest_that_fits
from benchmarks.traffic import Traffic
from data.clips import Clip
from models.interfaces import StepOutput

CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------------------------- traffic


def counted(work) -> dict[str, int]:
    with Traffic() as traffic:
        work()
    return {kind: size for kind, size in traffic.bytes.items() if size}


def test_a_matrix_product_moves_its_factors_and_its_result():
    x, weight = torch.randn(100, 50), torch.randn(30, 50)
    expected = {kinds.MATRICES: 4 * (100 * 50 + 30 * 50 + 100 * 30)}
    assert counted(lambda: x @ weight.T) == expected  # a transposed view moves nothing
    assert counted(lambda: torch.mm(x, weight.T, out=torch.empty(100, 30))) == expected


def test_what_is_changed_in_place_is_read_and_written_but_what_is_overwritten_is_not_read():
    x, y = torch.ones(1000), torch.ones(1000)
    assert counted(lambda: x.add_(y)) == {kinds.ELEMENTWISE: 4 * 3000}
    assert counted(lambda: x.copy_(y)) == {kinds.COPIES: 4 * 2000}
    assert counted(lambda: x.zero_()) == {kinds.ELEMENTWISE: 4 * 1000}


def test_a_repeated_element_is_read_once():
    row = torch.ones(1, 1000)
    assert counted(lambda: row.expand(10, 1000).mul(2)) == {kinds.ELEMENTWISE: 4 * (1000 + 10_000)}


def test_the_backward_pass_is_counted_too():
    x, weight = torch.randn(100, 50), torch.randn(30, 50, requires_grad=True)
    grad = torch.randn(100, 30)
    forward = counted(lambda: x @ weight.T)
    both = counted(lambda: (x @ weight.T).backward(grad))
    assert both[kinds.MATRICES] == 2 * forward[kinds.MATRICES]  # the gradient of the weight; x wants none


# --------------------------------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_192x192_64x3_1x2_h_bz_coopB_TNT", kinds.MATRICES),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x32", kinds.MATRICES),
        ("aten::addmm_", kinds.MATRICES),
        ("triton_tem_fused_mm_3", kinds.MATRICES),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel)", kinds.ATTENTION),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_31_64x128x128", kinds.ATTENTION),
        ("triton_per_fused__scaled_dot_product_efficient_attention_add_native_layer_norm_7", kinds.ELEMENTWISE),
        ("void at::native::(anonymous namespace)::conv_depthwise3d_cuda_kernel<float>", kinds.CONVOLUTION),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>", kinds.OPTIMIZER),
        ("Memcpy HtoD (Pinned -> Device)", kinds.COPIES),
        ("void at::native::elementwise_kernel<128, 2, direct_copy_kernel_cuda>", kinds.COPIES),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>", kinds.ELEMENTWISE),
        ("aten::_log_softmax", kinds.ELEMENTWISE),
    ],
)
def test_a_kernel_is_known_by_its_name(name, kind):
    assert kinds.kind_of(name) == kind


@pytest.mark.parametrize(
    ("device", "expected"),
    [("NVIDIA H100 80GB HBM3", 989.4e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12)],
)
def test_the_data_sheet_of_a_gpu_is_found_by_its_name(device, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: device)
    assert data_sheet_rate(torch.device("cuda")) == expected


def test_the_profile_finds_where_the_time_went():
    x = torch.randn(600, 600)
    profile = measure(lambda: [x @ x for _ in range(5)], CPU)
    assert next(iter(profile.seconds_by_kind)) == kinds.MATRICES and profile.kernels[0].calls == 5
    assert 0 < profile.seconds_by_kind[kinds.MATRICES] <= profile.seconds
    assert "aten::mm" in profile.table()


# --------------------------------------------------------------------------------------------------------------- steps


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, clip: Clip, step: int) -> StepOutput:
        return StepOutput(self.layer(clip.frames.mean(dim=(-1, -2))).square().mean(), {})


def test_timed_steps_are_training_steps_and_every_phase_is_there():
    model = Line()
    stepper = Stepper(model, torch.optim.SGD(model.parameters(), lr=0.1), float("inf"), CPU)
    clip = Clip(torch.rand(2, 4, 3, 8, 8), None)
    before = model(clip, 0).loss.item()
    run = stepper.run(iter([clip] * 5), 5)
    assert model(clip, 0).loss.item() < before
    assert len(run.steps) == 5 and all(second > 0 for step in run.steps for second in step)
    assert run.typical(CPU) == min(run.steps, key=lambda step: step.total)
    assert 0 < run.stall_share < 1 and run.peak >= run.peak_forward_backward > 0


def test_the_batch_is_the_largest_that_does_not_run_out_of_memory():
    tried = []

    def attempt(size: int) -> None:
        tried.append(size)
        if size > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    assert largest_that_fits(attempt, [48, 32, 24, 16, 12]) == 16
    assert tried == [48, 32, 24, 16]
    with pytest.raises(ValueError, match=r"not even one clip .* --train.gradient_checkpointing=true"):
        largest_that_fits(attempt, [48, 32])


@pytest.mark.parametrize("config", step_inputs.CONFIGS)
def test_small_sizes_are_the_quickstarts(config):
    cfg = step_inputs.compose(config, [], small=True)
    size = sum(parameter.numel() for parameter in step_inputs.build(cfg, small=True).parameters())
    assert 1e5 < size < 2e6 and cfg.optimizer._target_ == "training.optimizers.adamw"


def test_the_command_prints_a_table_and_ends_with_json(capsys):
    sizes = ["--steps=3", "--train.num_frames=4", "--train.num_workers=0"]
    train_step.main(["--config=genie_redux_guided", "--small", "--profile", *sizes])
    *table, last = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  eager, 1 x 4 frames") for line in table)
    found = json.loads(last)
    assert found["name"] == "train_step.genie_redux_guided" and found["unit"] == "GFLOP/s"
    assert found["ratio"] == pytest.approx(found["value"] / found["reference"], rel=1e-2)
    assert found["frames_per_second"] == pytest.approx(4 / found["seconds"], rel=1e-2)
    assert 0 < found["data_wait_share"] < 1 and found["eager"]["steps"] == 3
    assert 0.5 < sum(found["eager"]["profile"]["share"].values()) <= 1.01
    assert found["machine"]["torch"] == torch.__version__ and found["compiled"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to fill")
def test_filling_a_gpu_without_one_is_refused_in_one_line():
    with pytest.raises(SystemExit, match=r"^error: --batch=auto fills a GPU's memory .* set --train.batch_size=N$"):
        train_step.main(["--config=tokenizer", "--batch=auto"])
