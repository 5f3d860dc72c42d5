import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import pretrained
from models.interfaces import Sampling
from tests.models.builders import clip

QUANTIZER = {
    "_target_": "models.components.quantizers.VectorQuantizer",
    "_partial_": True,
    "codebook_size": 12,
    "codebook_dim": 8,
    "commitment": 0.25,
    "dead_code_steps": None,
    "normalize_codes": False,
}
BODY = {
    "image_size": [16, 16],
    "channels": 3,
    "patch_size": 4,
    "dim": 32,
    "heads": 2,
    "dim_head": 16,
    "encoder_blocks": 1,
    "decoder_blocks": 1,
    "ff_mult": 4,
    "feed_forwards": "last",
    "norm_keys": True,
    "norm_pixels": False,
    "quantizer": QUANTIZER,
}
TOKENIZER = {"_target_": "models.tokenizer.STViViT", "reconstruction_loss": "mse", **BODY}
LATENT = {
    "_target_": "models.actions.LatentActions",
    "lam": {"_target_": "models.lam.LatentActionModel", **BODY},
    "detach": False,
}
DYNAMICS = {
    "_target_": "models.dynamics.MaskGIT",
    "_partial_": True,
    "dim": 32,
    "heads": 2,
    "dim_head": 16,
    "blocks": 1,
    "ff_mult": 4,
    "feed_forwards": "last",
    "norm_keys": True,
    "max_seq_len": None,
    "conditioning": "film",
    "rule": "next",
    "mask_rate": [0.0, 0.1],
    "loss_on": "all",
    "loss_reduction": "clip",
    "token_input": "both",
    "token_output": "tied",
    "embedding_gradient": 1.0,
}


def world_config(tokenizer_fpath) -> dict:
    frozen = {"_target_": "models.pretrained.load_frozen", "path": str(tokenizer_fpath)}
    return {"_target_": "models.genie_redux.WorldModel", "tokenizer": frozen, "actions": LATENT, "dynamics": DYNAMICS}


@pytest.fixture
def tokenizer_fpath(tmp_path):
    torch.manual_seed(0)
    fpath = tmp_path / "tokenizer" / "model.safetensors"
    pretrained.save_weights(pretrained.build(TOKENIZER), fpath, config=TOKENIZER)
    return fpath


@pytest.fixture
def world_fpath(tmp_path, tokenizer_fpath):
    config = world_config(tokenizer_fpath)
    fpath = tmp_path / "run" / "step-00000002" / "model.safetensors"
    metadata = {"tokenizer_hash": pretrained.content_hash(tokenizer_fpath)}
    pretrained.save_weights(pretrained.build(config), fpath, config=config, metadata=metadata)
    (tmp_path / "run" / "latest").write_text("step-00000002\n")
    return fpath


def test_a_tokenizer_comes_back_as_it_was(tokenizer_fpath):
    torch.manual_seed(0)
    original = pretrained.build(TOKENIZER).eval()
    frames = clip().frames
    for path in (tokenizer_fpath, tokenizer_fpath.parent):
        loaded = pretrained.load(path)
        assert not loaded.training
        assert torch.equal(loaded.encode(frames), original.encode(frames))


def test_a_world_comes_back_from_its_run_folder_with_its_tokenizer(world_fpath):
    batch = clip()
    rollouts = [
        pretrained.load(path).rollout(batch.frames[:, :1], batch.actions, sampling=Sampling(), seeds=batch.seeds)
        for path in (world_fpath, world_fpath.parent.parent)
    ]
    assert torch.equal(rollouts[0].frames, rollouts[1].frames)


def test_a_world_file_does_not_repeat_its_tokenizer_and_finds_the_copy_of_its_run_folder(world_fpath, tokenizer_fpath):
    assert not [name for name in load_file(world_fpath) if name.startswith("tokenizer.")]
    tokenizer_fpath.rename(world_fpath.parent.parent / pretrained.TOKENIZER)
    pretrained.load(world_fpath)


def test_a_tokenizer_with_other_weights_is_refused(world_fpath, tmp_path):
    other = tmp_path / "other" / "model.safetensors"
    torch.manual_seed(1)
    pretrained.save_weights(pretrained.build(TOKENIZER), other, config=TOKENIZER)
    with pytest.raises(ValueError, match=r"not the tokenizer that .* was trained with; set tokenizer_fpath"):
        pretrained.load(world_fpath, tokenizer_fpath=other)


def test_a_missing_tokenizer_names_the_key(world_fpath, tokenizer_fpath):
    tokenizer_fpath.unlink()
    with pytest.raises(FileNotFoundError, match="set tokenizer_fpath"):
        pretrained.load(world_fpath)


def test_a_world_is_no_tokenizer(world_fpath):
    with pytest.raises(ValueError, match="holds a WorldModel, expected a tokenizer"):
        pretrained.load_frozen(world_fpath)
    with pytest.raises(ValueError, match="tokenizer_fpath is null"):
        pretrained.load_frozen(None)


def test_missing_damaged_and_foreign_files_are_named(tmp_path, tokenizer_fpath):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*nowhere"):
        pretrained.load(tmp_path / "nowhere")
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(tokenizer_fpath.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"truncated.safetensors is truncated or not a weight file"):
        pretrained.load(truncated)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match="carries no model config"):
        pretrained.load(foreign)
    future = tmp_path / "future.safetensors"
    save_file({"x": torch.zeros(1)}, future, metadata={"lamp": json.dumps({"format": 99})})
    with pytest.raises(ValueError, match="has format 99"):
        pretrained.load(future)


def test_weights_of_another_shape_are_listed(tokenizer_fpath):
    wider = pretrained.build(TOKENIZER | {"encoder_blocks": 2, "quantizer": QUANTIZER | {"codebook_size": 13}})
    with pytest.raises(ValueError, match=r"missing encoder.layers.1.*and \d+ more"):
        pretrained.load_state(wider, tokenizer_fpath)


@pytest.mark.parametrize("target", ["os.system", "models.pretrained.torch.load", "models.pretrained.os.system"])
def test_a_file_cannot_make_us_run_foreign_code(tmp_path, target):
    fpath = tmp_path / "evil.safetensors"
    config = TOKENIZER | {"quantizer": {"_target_": target, "command": "true"}}
    save_file({"x": torch.zeros(1)}, fpath, metadata={"lamp": json.dumps({"format": 1, "config": config})})
    with pytest.raises(ValueError, match=r"only build things below models\., got _target_"):
        pretrained.load(fpath)


def test_an_interrupted_save_leaves_the_old_file(tokenizer_fpath, monkeypatch):
    before = tokenizer_fpath.read_bytes()

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        pretrained.save_weights(pretrained.build(TOKENIZER), tokenizer_fpath, config=TOKENIZER)
    assert tokenizer_fpath.read_bytes() == before
