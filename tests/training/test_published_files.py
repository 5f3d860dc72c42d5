"""Published files stand wherever weights are named: evaluation, a warm start and the tokenizer of a training."""

import pytest
import torch

from models import pretrained
from models.published import to_published
from tests.models import builders
from training.evaluation import run
from training.setup import build_model
from training.trainer import Trainer, train

from .workers import tiny

KINDS = ("tokenizer", "genie_redux", "genie_redux_guided")


@pytest.fixture
def root(tmp_path):
    """A folder with each kind of model as a published file, <kind>.pt."""
    for kind in KINDS:
        torch.manual_seed(0)
        model = builders.settle(build_model(tiny.configure(kind, tmp_path).network))
        torch.save(to_published(model, step=9), tmp_path / f"{kind}.pt")
    return tmp_path


def configure(kind, root, **changes):
    if kind != "tokenizer":
        changes = {"tokenizer_fpath": root / "tokenizer.pt"} | changes
    return tiny.configure(kind, root, **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_takes_published_files(kind, root):
    changes = {
        "eval__dataset_name": "noise",
        "eval__num_clips": 2,
        "eval__batch_size": 2,
        "eval__num_samples": 0,
        "eval__reader_steps": 2,
        "eval__save_root_dpath": root / "out",
        "eval__weights_dir": root / "weights",
        "eval__model_fpath": root / f"{kind}.pt",
        "eval__model_name": kind,
        "mode": "eval",
    }
    results = run(configure(kind, root, **changes))[kind]
    assert results["num_clips"] == 2 and results["protocol"]["train_steps"] == 9
    if kind != "tokenizer":
        with pytest.raises(ValueError, match="does not hold its tokenizer; set tokenizer_fpath"):
            run(configure(kind, root, **changes, name="alone", **{"tokenizer_fpath": None}))


@pytest.mark.parametrize("kind", KINDS)
def test_training_starts_from_published_files(kind, root):
    trainer = Trainer(configure(kind, root, train__init_fpath=root / f"{kind}.pt"))
    state = pretrained.trainable_state(trainer.state.model)
    expected = pretrained.trainable_state(pretrained.load(root / f"{kind}.pt", tokenizer_fpath=root / "tokenizer.pt"))
    assert state and all(torch.equal(value.cpu(), expected[name]) for name, value in state.items())


def test_weights_of_another_kind_are_refused_by_name(root):
    cfg = configure("genie_redux", root, train__init_fpath=root / "genie_redux_guided.pt")
    with pytest.raises(ValueError, match="holds a WorldModel with RecordedActions, but this run trains"):
        Trainer(cfg)


def test_a_run_on_a_published_tokenizer_keeps_it_in_our_format(root):
    train(configure("genie_redux_guided", root, train__num_train_steps=1))
    run_dpath = root / "runs" / "genie_redux_guided" / "genie_redux_guided"
    kept = run_dpath / pretrained.TOKENIZER
    assert not pretrained.is_published(kept)
    assert pretrained.content_hash(kept) == pretrained.content_hash(root / "tokenizer.pt")
    (root / "tokenizer.pt").unlink()
    assert pretrained.load(run_dpath).tokenizer.image_size is None
