"""Files in the published format, of any size, give the published numbers; ours go out and come back unchanged."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from safetensors.torch import load_file
from torch import nn

from models import convert, pretrained
from models.components.attention import Attention
from models.dynamics import Lesson
from models.genie_redux import WorldModel
from models.interfaces import Sampling
from models.published import from_published, to_published
from tests.models import builders
from training.command_line import compose, parse

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden"
WORLDS = ("genie_redux", "genie_redux_guided")
GAP = 2e-5


def weights(name: str) -> Path:
    return GOLDEN / f"{name}_model-1.pt"


def arrays(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}.npz").items()}


def ours(video: torch.Tensor) -> torch.Tensor:
    """Between (B, C, T, H, W), as the arrays are, and (B, T, C, H, W)."""
    return video.transpose(1, 2)


def golden_world(name: str) -> WorldModel:
    return pretrained.load(weights(name), tokenizer_fpath=weights("tokenizer"))


def assert_near(value, expected, tolerance=1e-4):
    torch.testing.assert_close(value, expected.view_as(value), rtol=0, atol=tolerance)


def assert_same_gradient(parameter, expected):
    error = (parameter.grad - expected.view_as(parameter)).norm() / expected.norm()
    assert error < 1e-4, f"relative error {error}"


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return ours(arrays("tokenizer")["video"]).contiguous()


# ------------------------------------------------------------------------------------------------------- same numbers


def test_the_tokenizer_gives_the_published_ids_and_pictures(frames):
    golden, tokenizer = arrays("tokenizer"), pretrained.load(weights("tokenizer"))
    with torch.no_grad():
        tokens = tokenizer.encode(frames)
        sure = golden["token_gap"] > GAP
        assert sure.float().mean() > 0.99 and torch.equal(tokens[sure], golden["token_ids"][sure])
        assert_near(ours(tokenizer.decode(golden["token_ids"])), golden["recon"])


def test_the_tokenizer_gives_the_published_loss_and_gradients(frames):
    golden, tokenizer = arrays("tokenizer"), pretrained.load(weights("tokenizer")).train()
    output = tokenizer(SimpleNamespace(frames=frames), 0)
    assert_near(output.loss, golden["train_loss"], 1e-5)
    assert_near(output.logs["quantizer"], golden["train_vq_loss"], 1e-5)
    output.loss.backward()
    assert_same_gradient(tokenizer.quantizer.embed, golden["grad_codebook"])
    assert_same_gradient(tokenizer.patch_embedding.rest[1].weight, golden["grad_patch_emb"])
    assert_same_gradient(tokenizer.encoder.layers[0].temporal_attention.to_q.weight, golden["grad_to_q_enc0_temporal"])


def test_the_latent_action_model_gives_the_published_actions_and_frames(frames):
    golden, lam = arrays("lam"), golden_world("genie_redux").actions.lam
    with torch.no_grad():
        assert (golden["action_gap"] > GAP).all() and torch.equal(lam.indices(frames), golden["action_ids"])
        assert_near(lam.embed(golden["action_ids"]), golden["action_tokens"])
        assert_near(lam.embed(torch.arange(7)), golden["codes_of_all_ids"])
        assert_near(ours(lam.predict(frames).frames), golden["recon"])


def test_the_latent_action_model_gives_the_published_loss_and_gradient(frames):
    golden, lam = arrays("lam"), golden_world("genie_redux").actions.lam.train()
    _, output = lam(frames)
    assert_near(output.loss, golden["train_loss"], 1e-5)
    output.loss.backward()
    assert_same_gradient(lam.quantizer.embed, golden["grad_codebook"])


@pytest.mark.parametrize("name", WORLDS)
def test_the_dynamics_gives_the_published_logits_and_loss(name):
    golden, dynamics = arrays(name), golden_world(name).dynamics
    actions = golden["action_vectors"] if name == "genie_redux" else golden["action_onehot"].float()
    inputs = golden["masked_input_ids"]
    with torch.no_grad():
        assert_near(dynamics.logits(inputs, actions).flatten(1, 3), golden["logits"])
    targets, asked = (golden[key].view_as(inputs) for key in ("target_ids", "loss_mask"))
    dynamics.rule.lesson = lambda *_: Lesson(inputs, actions, targets, asked)  # the published code's mask
    assert_near(dynamics(None, None, None, 0).loss, golden["ce_loss_on_masked"], 1e-5)


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize(("method", "chunk"), [("one_go", 4), ("autoregressive", 2)])
def test_a_dream_is_the_published_one(name, method, chunk, frames):
    golden, world = arrays(name), golden_world(name)
    seeds = torch.zeros(2, dtype=torch.int64)
    dream = world.rollout(frames[:, :2], golden["gen_action_ids"], sampling=Sampling(), seeds=seeds, chunk=chunk)
    assert golden["autoregressive_min_gap"] > GAP and (golden["one_go_gap"] > GAP).all()
    if method == "one_go":
        assert torch.equal(dream.tokens.flatten(1), golden["one_go_ids"])
    else:
        assert torch.equal(dream.tokens[:, 2:], golden["autoregressive_new_ids"])
    assert_near(ours(dream.frames), golden[f"{method}_video"])


@pytest.mark.parametrize("name", WORLDS)
def test_four_passes_refine_as_the_published_loop_does(name, frames):
    golden, world = arrays(name), golden_world(name)
    sampling = Sampling(steps=4, schedule="published")
    seeds = torch.zeros(2, dtype=torch.int64)
    dream = world.rollout(frames[:, :2], golden["gen_action_ids"], sampling=sampling, seeds=seeds, chunk=4)
    assert torch.equal(dream.tokens.flatten(1), golden["one_go_4steps_temp0_ids"])
    assert not torch.equal(dream.tokens.flatten(1), golden["one_go_ids"])


def test_the_sizes_of_the_golden_files_are_read_from_their_shapes():
    world = golden_world("genie_redux")
    assert world.image_size == (32, 32) and world.num_actions == 7 and world.dynamics.max_seq_len == 400
    assert pretrained.read_header(weights("genie_redux_guided"))["config"]["actions"]["num_actions"] == 7
    assert pretrained.read_header(weights("tokenizer"))["metadata"] == {"step": 1}


# ------------------------------------------------------------------------------------------------------ published sizes


@pytest.mark.parametrize(
    ("config", "published"),
    [("tokenizer", 101_612_360), ("genie_redux", 249_723_184), ("genie_redux_guided", 80_739_535)],
)
def test_parameters_are_as_many_as_published(config, published):
    with torch.device("meta"):
        model = instantiate(compose(parse([])).network, _convert_="all")
        if config != "tokenizer":
            cfg = compose(parse([f"--config={config}.yaml"]))
            parts = {key: instantiate(cfg[key], _convert_="all") for key in ("actions", "dynamics")}
            model = WorldModel(tokenizer=model, **parts)
    live = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    trained = [model] if config == "tokenizer" else [model.actions, model.dynamics]
    # The format repeats the norm of every attention's queries for its context, which is never applied.
    dead = sum(m.norm.gamma.numel() for part in trained for m in part.modules() if isinstance(m, Attention))
    assert live + dead == published


# ------------------------------------------------------------------------------------------------------------ both ways


def other_sizes() -> dict[str, nn.Module]:
    """Models of sizes unlike the golden ones, unequal wherever they may be."""
    quantizer = {"_target_": "models.components.quantizers.VectorQuantizer", "_partial_": True, "commitment": 0.25}
    quantizer |= {"codebook_size": 12, "codebook_dim": 8, "dead_code_steps": None, "normalize_codes": False}
    layout = {"feed_forwards": "both", "norm_keys": False}
    body = {"channels": 3, "patch_size": 8, "dim": 24, "heads": 3, "dim_head": 10, "ff_mult": 4, "norm_pixels": True}
    body |= {"image_size": [16, 16], "encoder_blocks": 1, "decoder_blocks": 3, "quantizer": quantizer} | layout
    dynamics = {"_target_": "models.dynamics.MaskGIT", "_partial_": True, "dim": 40, "heads": 6, "dim_head": 12}
    dynamics |= {"blocks": 3, "ff_mult": 2.5, "max_seq_len": 77, "rule": "next", "mask_rate": [0.5, 1.0]} | layout
    dynamics |= {"loss_on": "masked", "loss_reduction": "clip", "token_input": "learned", "token_output": "linear"}
    dynamics |= {"embedding_gradient": 0.1}
    torch.manual_seed(0)
    tokenizer = pretrained.build({"_target_": "models.tokenizer.STViViT", "reconstruction_loss": "mse"} | body)
    lam = {"_target_": "models.lam.LatentActionModel"} | body | {"dim": 40, "heads": 5, "patch_size": 4}
    lam |= {"quantizer": quantizer | {"codebook_size": 5}}
    latent = {"_target_": "models.actions.LatentActions", "lam": lam, "detach": False}
    recorded = {"_target_": "models.actions.RecordedActions", "num_actions": 15}
    models = {"tokenizer": tokenizer}
    for name, actions, conditioning in (("latent", latent, "add"), ("recorded", recorded, "concat")):
        parts = {"actions": actions, "dynamics": dynamics | {"conditioning": conditioning}}
        models[name] = WorldModel(tokenizer=tokenizer, **{key: pretrained.build(node) for key, node in parts.items()})
    return {name: builders.settle(model) for name, model in models.items()}


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return other_sizes()


@pytest.fixture
def files(models, tmp_path) -> dict[str, Path]:
    paths = {name: tmp_path / name / "model.pt" for name in models}
    for name, path in paths.items():
        path.parent.mkdir()
        torch.save(to_published(models[name], step=3), path)
    return paths


@pytest.mark.parametrize("name", ["tokenizer", "latent", "recorded"])
def test_any_sizes_come_back_and_compute_the_same(name, models, files):
    model, loaded = models[name], pretrained.load(files[name], tokenizer_fpath=files["tokenizer"])
    state = pretrained.trainable_state(model)
    assert list(pretrained.trainable_state(loaded)) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in pretrained.trainable_state(loaded).items())
    clip = builders.clip(num_frames=4)
    if name == "tokenizer":
        with torch.no_grad():
            tokens = model.encode(clip.frames)
            assert torch.equal(loaded.encode(clip.frames), tokens)
            assert_near(loaded.decode(tokens), model.decode(tokens))
    else:
        actions = clip.actions % model.num_actions
        dreams = [
            world.rollout(clip.frames[:, :2], actions, sampling=Sampling(), seeds=clip.seeds, chunk=2)
            for world in (model, loaded)
        ]
        assert torch.equal(dreams[0].tokens, dreams[1].tokens)
        assert_near(dreams[0].frames, dreams[1].frames)


@pytest.mark.parametrize("name", ["tokenizer", *WORLDS])
def test_published_to_ours_to_published_changes_no_live_entry(name, tmp_path):
    before = torch.load(weights(name), weights_only=True)
    after = to_published(pretrained.load(weights(name), tokenizer_fpath=weights("tokenizer")), step=1)
    assert list(after) == list(before) and after["step"] == before["step"] and after["scaler"] is None
    parts = [(before["model"], after["model"])]
    if name != "tokenizer":
        parts = [(before["model"][part], after["model"][part]) for part in before["model"]]
    for old, new in parts:
        assert {key: value.shape for key, value in new.items()} == {key: value.shape for key, value in old.items()}
        changed = [key for key in old if not torch.equal(old[key], new[key])]
        assert all("context_norm" in key or "_codebook" in key for key in changed)
        if "vq._codebook.embed" in old:
            assert torch.equal(old["vq._codebook.embed"], new["vq._codebook.embed"])
    for old, new in zip(before["optim"]["param_groups"], after["optim"]["param_groups"], strict=True):
        assert old == new


def test_the_command_converts_there_and_back_bit_exactly(files, tmp_path, capsys):
    for name in files:
        tokenizer = [] if name == "tokenizer" else [f"--tokenizer_fpath={files['tokenizer']}"]
        first, second, third = tmp_path / "a.safetensors", tmp_path / "b.pt", tmp_path / "c.safetensors"
        for source, target in ((files[name], first), (first, second), (second, third)):
            assert convert.main([f"--input={source}", f"--output={target}", *tokenizer]) == 0, capsys.readouterr().err
        one, three = load_file(first), load_file(third)
        assert list(one) == list(three) and all(torch.equal(one[key], three[key]) for key in one)
        assert pretrained.read_header(third) == pretrained.read_header(first)
        assert pretrained.content_hash(files[name]) == pretrained.content_hash(first)
        assert pretrained.read_header(first)["metadata"]["step"] == 3


def test_the_command_finds_the_tokenizer_beside_a_world(files, tmp_path, capsys):
    world, target = files["recorded"], tmp_path / "world.safetensors"
    assert convert.main([f"--input={world}", f"--output={target}"]) == 2
    assert "set tokenizer_fpath" in capsys.readouterr().err
    pretrained.copy_weights(files["tokenizer"], world.parent / pretrained.TOKENIZER)
    assert convert.main([f"--input={world}", f"--output={target}"]) == 0
    assert pretrained.load(target).num_actions == 15


def test_the_command_refuses_what_it_cannot_do_in_one_line(files, tmp_path):
    output = tmp_path / "x.pt"
    words = [sys.executable, "-m", "models.convert", f"--input={files['recorded']}", f"--output={output}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--output must end in .safetensors" in done.stderr
    assert not output.exists()


def test_flat_dictionaries_of_a_world_are_read_as_nested_ones(files):
    nested = torch.load(files["latent"], weights_only=True)
    flat = {f"{part}.{key}": value for part, state in nested["model"].items() for key, value in state.items()}
    one, two = from_published(nested), from_published({"model": flat})
    assert one[0] == two[0] and list(one[1]) == list(two[1])
    guided = torch.load(files["recorded"], weights_only=True)
    assert from_published(guided)[0] == from_published({"model": guided["model"]["dynamics"]})[0]


# --------------------------------------------------------------------------------------------------------------- errors


def change(path: Path, edit) -> Path:
    file = torch.load(path, weights_only=True)
    edit(file["model"])
    torch.save(file, path)
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda model: model.pop("decoder.layers.1.0.temporal_peg.dsconv.bias"), "missing decoder.layers.1.0.temporal"),
        (lambda model: model.pop("vq._codebook.embed"), "missing vq._codebook.embed"),
        (lambda model: model.update(strange=torch.zeros(1)), "unexpected strange"),
        (lambda model: model.update({"encoder.layers.7.0.x": torch.zeros(1)}), "missing encoder.layers.1.0.*and"),
        (lambda model: model.clear(), "missing encoder.norm_out.gamma"),
        (lambda model: model.update(a={}, b={}), "holds something other than named tensors"),
        (lambda model: model.update({"vq.project_in.weight": torch.zeros(3, 3)}), r"project_in.weight is \(3, 3\)"),
    ],
)
def test_entries_that_do_not_fit_are_listed(files, edit, message):
    with pytest.raises(ValueError, match=message):
        pretrained.load(change(files["tokenizer"], edit))


def test_dead_entries_may_be_absent(files):
    def drop(model):
        for key in [key for key in model if "context_norm" in key or key.endswith(("embed_avg", "initted"))]:
            del model[key]

    hashes = [pretrained.content_hash(files["tokenizer"]) for edit in (len, drop) if change(files["tokenizer"], edit)]
    assert hashes[0] == hashes[1]


def test_a_world_asks_for_its_tokenizer(files):
    with pytest.raises(ValueError, match="does not hold its tokenizer; set tokenizer_fpath"):
        pretrained.load(files["recorded"])
    with pytest.raises(ValueError, match=r"token_emb.weight is \(65, 64\), expected \(13, 64\)"):
        pretrained.load(weights("genie_redux_guided"), tokenizer_fpath=files["tokenizer"])


def test_a_folder_of_published_files_means_the_latest_of_them(files, tmp_path):
    tmp_path = tmp_path / "checkpoints"
    tmp_path.mkdir()
    for step in (2000, 10000, 9000):
        (tmp_path / f"model-{step}.pt").write_bytes(files["tokenizer"].read_bytes())
    assert pretrained.resolve_fpath(tmp_path) == tmp_path / "model-10000.pt"
    (tmp_path / "downloaded").mkdir()
    (tmp_path / "downloaded" / "model.pt").write_bytes(files["tokenizer"].read_bytes())
    assert pretrained.resolve_fpath(tmp_path / "downloaded").name == "model.pt"
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / "model.safetensors").touch()
    assert pretrained.resolve_fpath(tmp_path) == tmp_path / "step-00000001" / "model.safetensors"


def test_halves_of_worlds_and_later_versions_are_refused(files):
    latent = torch.load(files["latent"], weights_only=True)
    with pytest.raises(ValueError, match="needs a latent_action_model"):
        from_published({"model": {"dynamics": latent["model"]["dynamics"]}})
    embedding = {"maskgit.token_emb.weight": torch.zeros(13, 15)}
    guided = torch.load(files["recorded"], weights_only=True)["model"]["dynamics"]
    wide = {"maskgit.transformer.norm_out.gamma": torch.zeros(30)}
    with pytest.raises(ValueError, match="v2"):
        from_published({"model": {"dynamics": guided | embedding | wide}})


class Evil:
    def __reduce__(self):
        return print, ("code of the file has run",)


def test_code_in_a_file_is_not_run(tmp_path, capsys):
    for is_archive in (True, False):
        path = tmp_path / "evil.pt"
        torch.save({"model": Evil()}, path, _use_new_zipfile_serialization=is_archive)
        with pytest.raises(ValueError, match="truncated or holds more than weights"):
            pretrained.load(path)
    assert "has run" not in capsys.readouterr().out


def test_a_damaged_file_is_named(files):
    whole = files["tokenizer"].read_bytes()
    for size in (len(whole) // 2, 100):
        files["tokenizer"].write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model.pt is truncated"):
            pretrained.load(files["tokenizer"])


def test_files_of_older_torch_are_read_too(files):
    file = torch.load(files["tokenizer"], weights_only=True)
    before = pretrained.content_hash(files["tokenizer"])
    torch.save(file, files["tokenizer"], _use_new_zipfile_serialization=False)
    assert pretrained.content_hash(files["tokenizer"]) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "guided-film",
            "dynamics.conditioning is film.*feed_forwards is last.*norm_keys is true.*norm_pixels is false",
        ),
        ("latent-in-place", "dynamics.rule is in_place"),
    ],
)
def test_what_the_format_cannot_hold_is_named(name, message):
    with pytest.raises(ValueError, match=f"cannot hold this model: .*{message}"):
        to_published(builders.world(name))
    with pytest.raises(ValueError, match="FiniteScalarQuantizer"):
        to_published(builders.tokenizer("fsq"))


def test_a_published_tokenizer_takes_frames_of_any_size_that_its_patches_divide(files):
    tokenizer = pretrained.load(files["tokenizer"])
    assert tokenizer.image_size is None
    assert tokenizer.encode(torch.rand(1, 2, 3, 24, 40)).shape == (1, 2, 3, 5)
    with pytest.raises(ValueError, match="20x24 is not a multiple of patch_size 8"):
        tokenizer.encode(torch.rand(1, 2, 3, 20, 24))
    assert pretrained.load_frozen(files["tokenizer"], image_size=(16, 16)).grid == (2, 2)
