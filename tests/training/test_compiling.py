"""`train.compile`: the same training, in graphs without breaks that are made once."""

import os
import stat

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from models.components.st_transformer import STTransformer
from tests.training.workers.tiny import configure
from training import compiling
from training.trainer import Trainer, train

COMPARED = ("eager", "compiled")
COMMON = {"linear": True, "train__num_train_steps": 4, "train__validate_every": 2, "train__ema_decay": 0.9}


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def quick(monkeypatch):
    """Graphs are traced and differentiated as always, then run by torch: writing C++ for them takes a minute."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")


class Counting(Trainer):
    """Notes how many graphs there are after each step."""

    def _after_step(self, **told) -> None:
        super()._after_step(**told)
        self.__dict__.setdefault("graphs", []).append(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize(
    ("kind", "checkpointing"), [("tokenizer", False), ("genie_redux", False), ("genie_redux_guided", True)]
)
def test_a_compiled_training_is_the_eager_one_compiles_in_its_first_step_and_goes_on_uncompiled(
    quick, kind, checkpointing, tmp_path
):
    settings = COMMON | {"train__gradient_checkpointing": checkpointing, "train__grad_accum": 2}
    if kind == "tokenizer":
        settings |= {"tokenizer__encoder_blocks": 3}  # which share one graph
    train(configure(kind, tmp_path, name="eager", **settings))
    counters.clear()
    run = Counting(configure(kind, tmp_path, name="compiled", **settings, train__compile=True))
    run.run()
    kinds_of_blocks = {"tokenizer": 2, "genie_redux": 4, "genie_redux_guided": 2}[kind]
    assert run.graphs == [kinds_of_blocks] * 4  # validation and dreams among them
    assert not counters["graph_break"]
    eager, compiled = (load_file(next(tmp_path.glob(f"runs/*/{name}/step-*4/*.safetensors"))) for name in COMPARED)
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)
    settings |= {"train__resume_ckpt": "auto", "train__num_train_steps": 5}
    train(configure(kind, tmp_path, name="compiled", **settings))
    assert list(tmp_path.glob("runs/*/compiled/step-00000005"))


def test_the_compilers_code_computes_what_the_formulas_say():
    torch.manual_seed(0)
    transformer = STTransformer(16, 2, 8, 2, 2, feed_forwards="last")
    x, bias = torch.randn(1, 1, 2, 2, 16, requires_grad=True), torch.randn(2, 4, 4, requires_grad=True)

    def gradients() -> list[torch.Tensor]:
        return list(torch.autograd.grad(transformer(x, bias).square().sum(), [x, bias, *transformer.parameters()]))

    eager = gradients()
    compiling.compile_blocks(transformer, torch.device("cpu"))
    counters.clear()
    compiled = gradients()
    assert counters["stats"]["unique_graphs"] == 1  # both blocks share it
    for found, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_machine_without_a_compiler_is_told_what_to_install(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"no compiler was found \(g\+\+\); install one, set CXX"):
        Trainer(configure("tokenizer", tmp_path, train__compile=True))


def test_a_compiler_of_the_users_own_counts(monkeypatch, tmp_path):
    own = tmp_path / "my-compiler"
    own.touch()
    own.chmod(own.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setenv("CXX", f"{own} -O1")
    compiling._check_compiler(torch.device("cpu"))
    monkeypatch.setenv("CXX", "my-missing-compiler")
    with pytest.raises(ValueError, match="my-missing-compiler"):
        compiling._check_compiler(torch.device("cpu"))


def test_a_model_without_blocks_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"^train\.compile is true, but NoisyLine has no transformer blocks"):
        Trainer(configure("noisy_line", tmp_path, train__compile=True))
