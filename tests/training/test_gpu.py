"""What only a GPU can show; the same code is tested on the CPU elsewhere."""

import json

import pytest
import torch

from models.interfaces import Sampling
from tests.models import builders
from tests.models.builders import WORLDS, clip, settle
from training.evaluation import run
from training.objectives import one_loss
from training.trainer import Trainer, train

from .test_evaluation import MEASURED, in_the_game
from .workers import networks, tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none"),
]


@pytest.mark.parametrize("kind", ["tokenizer", "genie_redux", "genie_redux_guided"])
@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_a_training_learns_on_the_gpu(kind, precision, tmp_path):
    train(tiny.configure(kind, tmp_path, train__mixed_precision=precision, train__num_train_steps=20))
    lines = (tmp_path / "runs" / kind / kind / "logs" / "metrics.jsonl").read_text().splitlines()
    logged = [scalars for scalars in map(json.loads, lines) if "train/loss" in scalars]
    losses = [scalars["train/loss"] for scalars in logged]
    assert all(scalars["train/peak_memory_gib"] > 0 for scalars in logged)
    assert len(losses) == 20 and losses[-1] < losses[0]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])  # one leaves its weights alone itself, the other is not called
def test_a_skipped_update_on_the_gpu_is_counted_and_the_training_goes_on(optimizer, tmp_path):
    def objective(parts, clip, step):
        for name, output in one_loss(parts, clip, step):
            yield name, output._replace(loss=output.loss * (torch.nan if step in (3, 4) else 1))

    settings = {"optimizer": optimizer, "train__num_train_steps": 8, "train__log_every": 4}
    run = Trainer(tiny.configure("genie_redux", tmp_path, train__on_nonfinite="skip", **settings), objective)
    run.run()
    assert run.state.skipped["total"] == 2
    assert all(torch.isfinite(value).all() for value in run.state.model.state_dict().values())


@pytest.mark.parametrize("name", WORLDS)
def test_a_rollout_on_the_gpu_is_that_of_the_cpu(name):
    torch.manual_seed(0)
    world, batch = settle(builders.world(name)), clip(num_frames=4)
    sampling = Sampling(temperature=1.0)
    cpu = world.rollout(batch.frames[:, :1], batch.actions, sampling=sampling, seeds=batch.seeds)
    parts = (batch.frames[:, :1].cuda(), batch.actions.cuda())
    gpu = world.cuda().rollout(*parts, sampling=sampling, seeds=batch.seeds.cuda())
    # Near ties may fall either way between two machines' roundings, and what follows them with it.
    assert (gpu.tokens.cpu() == cpu.tokens).float().mean() > 0.95


class Watched(Trainer):
    """From its third step on, a step in which the host waits for the GPU is an error."""

    def _train_step(self, batches) -> None:
        torch.cuda.set_sync_debug_mode("error" if self.state.step >= 2 else "default")
        try:
            super()._train_step(batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["bf16", "no"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", [*tiny.KINDS, *tiny.VARIANTS])
def test_the_host_never_waits_for_the_gpu_within_a_step(kind, optimizer, precision, tmp_path):
    settings = {"train__mixed_precision": precision, "train__grad_accum": 2, "train__ema_decay": 0.9}
    Watched(tiny.configure(kind, tmp_path, **settings, optimizer=optimizer, train__log_every=4)).run()


def test_an_evaluation_on_the_gpu_has_every_metric_and_uses_bf16(tmp_path, monkeypatch):
    networks.use_stand_ins(monkeypatch)
    results = run(in_the_game("genie_redux", tmp_path))["genie_redux"]
    assert results["protocol"]["mixed_precision"] == "bf16"
    for key in ("psnr", "ssim", "lpips", "fid", "fid_nearest", "fvd", "real_fvd", *MEASURED["genie_redux"]):
        assert results[key] is not None, key
