"""`train.gradient_checkpointing` reaches the blocks, and a run with it is the run without it."""

import pytest
import torch
from safetensors.torch import load_file

from models.components.st_transformer import STTransformer
from tests.training.workers.tiny import configure
from training.settings import TrainSettings
from training.trainer import Trainer


@pytest.mark.parametrize("kind", ["tokenizer", "genie_redux", "genie_redux_guided"])
def test_a_checkpointed_run_ends_with_the_same_weights(kind, tmp_path):
    ends = {}
    for is_on in (False, True):
        cfg = configure(
            kind, tmp_path, name=f"run_{is_on}", train__gradient_checkpointing=is_on, train__num_train_steps=2
        )
        trainer = Trainer(cfg)
        switches = {
            module.gradient_checkpointing
            for module in trainer.state.model.modules()
            if isinstance(module, STTransformer)
        }
        assert switches == {is_on}
        trainer.run()
        ends[is_on] = load_file(next(tmp_path.glob(f"runs/*/run_{is_on}/step-*/model.safetensors")))
    assert ends[True].keys() == ends[False].keys()
    assert all(torch.equal(value, ends[False][name]) for name, value in ends[True].items())


def test_a_model_without_blocks_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"^train\.gradient_checkpointing is true, but nothing in NoisyLine has it"):
        Trainer(configure("noisy_line", tmp_path, train__gradient_checkpointing=True))


def test_the_switch_is_true_or_false(tmp_path):
    with pytest.raises(ValueError, match=r"^train\.gradient_checkpointing is 'often', expected true or false"):
        TrainSettings.from_config(configure("tokenizer", tmp_path, train__gradient_checkpointing="often").train)
