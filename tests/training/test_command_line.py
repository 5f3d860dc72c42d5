"""The command line: what composes, how values are read, and one line for every mistake."""

import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hydra.utils import get_method
from omegaconf import OmegaConf

from training import command_line, help, main, pipeline
from training.command_line import CONFIGS, compose, entries, groups, options, parse

ROOT = CONFIGS.parent
WORLDS = ("genie_redux.yaml", "genie_redux_guided.yaml")


def composed(*words):
    return compose(parse(list(words)))


def small_dim(group):
    return OmegaConf.load(CONFIGS / group / "small.yaml").dim


# ---- every yaml


@pytest.mark.parametrize("config", entries())
def test_every_entry_composes_and_resolves(config):
    assert OmegaConf.to_container(composed(f"--config={config}"), resolve=True)


@pytest.mark.parametrize("config", ["tokenizer.yaml", *WORLDS])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_every_single_stage_command_passes_its_checks(config, mode):
    assert main.main([f"--config={config}", f"--mode={mode}", "--check"]) == 0


@pytest.mark.parametrize("config", entries())
def test_every_entry_opens_with_its_command_time_memory_and_result(config):
    comment = command_line.header(entries()[config])
    assert f"bash run.sh --config={config}" in comment
    for word in ("Time", "Memory", "Expect"):
        assert word.lower() in comment.lower(), f"{config} does not state {word}"


@pytest.mark.parametrize(("group", "option"), [(group, option) for group in groups() for option in options(group)])
def test_every_group_option_composes_somewhere(group, option):
    homes = [config for config in entries() if group in composed(f"--config={config}")]
    assert homes, f"no entry has the group {group}"
    assert any(composed(f"--config={config}", f"--{group}={option}")[group] is not None for config in homes)


# What the parent hands to a part's constructor, by group.
GIVEN = {
    "quantizer": {"dim"},
    "dynamics": {"num_tokens", "grid", "codebook", "action_dim"},
    "optimizer": {"module"},
    "actions": set(),
    "lam": set(),
    "tokenizer": set(),
}
SCHEDULE_KEYS = {"max_grad_norm", "warmup_steps", "min_lr_ratio", "kind"}


@pytest.mark.parametrize(("group", "option"), [(group, option) for group in GIVEN for option in options(group)])
def test_a_model_yaml_holds_exactly_the_keywords_of_its_constructor(group, option):
    home = next(config for config in entries() if group in composed(f"--config={config}"))
    node = composed(f"--config={home}", f"--{group}={option}")[group]
    wanted = inspect.signature(get_method(node["_target_"])).parameters
    assert not [name for name, parameter in wanted.items() if parameter.kind is parameter.VAR_KEYWORD]
    keys = set(node) - {"_target_", "_partial_"} - (SCHEDULE_KEYS if group == "optimizer" else set())
    assert keys | GIVEN[group] == set(wanted) - {"self"}


def test_the_defaults_are_the_published_sizes():
    tokenizer = composed("--config=tokenizer.yaml")
    assert tokenizer.tokenizer.dim == 512 and tokenizer.tokenizer.encoder_blocks == 8
    assert (tokenizer.quantizer.codebook_size, tokenizer.quantizer.codebook_dim) == (1024, 32)
    world, guided = (composed(f"--config={config}") for config in WORLDS)
    assert (world.dynamics.conditioning, world.dynamics.max_seq_len) == ("add", 8000)
    assert (guided.dynamics.conditioning, guided.dynamics.max_seq_len) == ("concat", 4000)
    assert world.lam.quantizer.codebook_size == 7
    assert world.dynamics.blocks == guided.dynamics.blocks == 12


# ---- values


@pytest.mark.parametrize(
    "text",
    [
        "a b",
        "a=b",
        "a,b",
        "f(x)",
        "a#b",
        "# a",
        "ümläut",
        "a:b",
        "C:\\new",
        "[a",
        "{",
        "x'y",
        '"',
        "",
        " a ",
        "007",
        "1e3",
    ],
)
def test_text_arrives_exactly_as_typed(text):
    assert composed(f"--train.dataset_name={text}").train.dataset_name == text


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("--train.batch_size=2", "train.batch_size", 2),
        ("--optimizer.lr=3e-4", "optimizer.lr", 3e-4),
        ("--eval.allow_train=true", "eval.allow_train", True),
        ("--optimizer.max_grad_norm=null", "optimizer.max_grad_norm", None),
        ("--train.resume_ckpt=null", "train.resume_ckpt", None),
        ("--train.resume_ckpt=runs/a=1", "train.resume_ckpt", "runs/a=1"),
        ("--optimizer.betas=[0.9, 0.95]", "optimizer.betas", [0.9, 0.95]),
        ("--eval.require=[fid,psnr]", "eval.require", ["fid", "psnr"]),
        ("--name='7'", "name", "7"),
        ("--train.wandb_name=${model}-x", "train.wandb_name", "tokenizer-x"),
    ],
)
def test_numbers_flags_lists_and_references_stay_typed(word, key, value):
    assert OmegaConf.select(composed(word), key) == value


def test_the_last_of_repeated_keys_counts():
    cfg = composed("--train.batch_size=2", "--tokenizer=small", "--train.batch_size=3", "--tokenizer=st_vivit")
    assert (cfg.train.batch_size, cfg.tokenizer.dim) == (3, 512)


def test_a_value_wins_over_a_group_option_wherever_it_stands():
    assert composed("--tokenizer.dim=64", "--tokenizer=small").tokenizer.dim == 64


def test_group_options_bring_their_own_keys():
    cfg = composed("--quantizer=fsq", "--quantizer.levels=[4,4]", "--optimizer=muon")
    assert cfg.tokenizer.quantizer.levels == [4, 4] and cfg.optimizer.adamw_lr > 0
    world = composed("--config=genie_redux", "--dynamics=small", "--lam=small", "--quantizer=fsq", "--optimizer=muon")
    assert world.network.dynamics.dim == small_dim("dynamics") and world.actions.lam.quantizer.levels == [8, 5, 5, 5]


def test_old_spellings_work_with_a_warning(capsys):
    cfg = composed(
        "--config=genie_redux.yaml", "--eval.model_path=P", "--lam.max_seq.len=8000", "--lam.max_seq_len=8000"
    )
    assert cfg.eval.model_fpath == "P" and "max_seq_len" not in cfg.lam
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 3
    assert "eval.model_fpath" in warnings[0] and "no effect" in warnings[1] and "no effect" in warnings[2]


def test_other_processes_speak_last_and_say_which_they_are(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    waited = []
    monkeypatch.setattr(main.time, "sleep", waited.append)
    assert main.main(["--train.bacth_size=2", "--eval.model_path=P"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("process 1: error: train.bacth_size") and error.count("\n") == 1
    assert waited and waited[0] > 1


@pytest.mark.parametrize(
    "command",
    [
        "--config=tokenizer.yaml --train.batch_size=7 --train.grad_accum=2",
        "--train.num_train_steps=10000",
        "--config=genie_redux.yaml --tokenizer_fpath=P --train.dataset_root_dpath=D --train.dataset_name=N "
        "--train.batch_size=2",
        "--config=genie_redux.yaml --mode=eval --eval.action_to_take=-1 --eval.inference_method=one_go "
        "--eval.model_fpath=checkpoints/GenieRedux_CoinRun_250mln_v1.0/model.pt --tokenizer_fpath=checkpoints/"
        "GenieRedux_Tokenizer_CoinRun_100mln_v1.0/model.pt --dynamics.max_seq_len=8000 --lam.max_seq.len=8000",
        "--config=genie_redux.yaml --mode=eval --eval.action_to_take=1 --eval.model_path=P "
        "--eval.inference_method=one_go",
    ],
)
def test_the_commands_that_users_of_the_reference_know_are_understood(command):
    assert main.main([*command.split(), "--check"]) == 0


# ---- a user's own yaml


def test_a_users_yaml_extends_one_of_ours_with_groups_of_its_own(tmp_path):
    folder = tmp_path / "my configs, all"
    (folder / "dynamics").mkdir(parents=True)
    (folder / "genie_redux.yaml").write_text("defaults: [genie_redux, override dynamics: mine, _self_]\nname: mine\n")
    (folder / "dynamics" / "mine.yaml").write_text("defaults: [small, _self_]\ndim: 48\n")
    cfg = composed(f"--config={folder / 'genie_redux.yaml'}", "--train.batch_size=1")
    assert (cfg.name, cfg.dynamics.dim, cfg.model, cfg.train.batch_size) == ("mine", 48, "genie_redux", 1)
    assert composed(f"--config={folder / 'genie_redux.yaml'}", "--dynamics=small").dynamics.dim == small_dim("dynamics")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: [", "not readable as yaml"),
        ("defaults: [genie_reduks]\n", "cannot be composed"),
        ("mode: train\nname: x\n", "the config has no train"),
        ("- 1\n", "mine.yaml"),
        ("defaults: [tokenizer, _self_]\ntrain: {bacth_size: 3}\n", "train.bacth_size"),
    ],
)
def test_a_users_broken_yaml_is_one_line(tmp_path, capsys, text, found):
    (tmp_path / "mine.yaml").write_text(text)
    assert main.main([f"--config={tmp_path / 'mine.yaml'}", "--check"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and found in error


# ---- mistakes


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--train.bacth_size=2"], "did you mean train.batch_size"),
        (["--batch_size=2"], "did you mean train.batch_size"),
        (["--num_proces=2"], "did you mean num_processes"),
        (["--config=tokeniser.yaml"], "did you mean tokenizer?"),
        (["--config=no/such.yaml"], "no/such.yaml"),
        (["--config=base.yaml"], "base.yaml"),
        (["--mode=evla"], "did you mean eval?"),
        (["--mode=null"], "mode=None is unknown"),
        (["--mode=play", "--play.port=70000"], "play.port is 70000, expected a port number up to 65535"),
        (["--mode=play", "--play.fps=90"], "play.fps is 90.0, expected at most play.max_fps = 30"),
        (["--tokenizer=smal"], "did you mean small?"),
        (["--train=3"], "no such option"),
        (["--network=x"], "network"),
        (["--config=genie_redux.yaml", "--tokenizer=small"], "tokenizer_fpath"),
        (["--config=genie_redux.yaml", "--tokenizer.dim=64"], "tokenizer_fpath"),
        (["--config=genie_redux_guided.yaml", "--quantizer=fsq"], "--help"),
        (["+train.batch_size=2"], "write --train.batch_size=2"),
        (["++train.batch_size=2"], "write --train.batch_size=2"),
        (["train.batch_size=2"], "write --train.batch_size=2"),
        (["--+train.batch_size=2"], "write --train.batch_size=2"),
        (["--config", "x"], "write --config=x"),
        (["--train.batch_size"], "--train.batch_size=value"),
        (["--name=${x"], "name=${x"),
        (["--name=${nowhere}"], "nowhere"),
        (["--name=null"], "name is None"),
        (["--train.batch_size=two"], "train.batch_size is 'two', expected a whole number"),
        (["--train.batch_size=0"], "train.batch_size is 0, expected a value of at least 1"),
        (["--train.batch_size=1,2"], "train.batch_size is '1,2'"),
        (["--optimizer.kind=cos"], "optimizer.kind is 'cos', expected one of cosine"),
        (["--eval.num_frames=3"], "eval.num_frames is 3"),
        (["--train.seed=99999999999"], "train.seed is 99999999999, expected a value of at most 4294900000"),
        (["--optimizer.lr=fast"], "optimizer.lr is 'fast', expected a number of at least 0"),
        (["--optimizer.lr=-1"], "optimizer.lr is -1, expected a number of at least 0"),
        (["--optimizer.lr=null"], "optimizer.lr is None, expected a number of at least 0"),
        (["--optimizer=muon", "--optimizer.adamw_lr=-1"], "optimizer.adamw_lr is -1, expected a number of at least 0"),
        (["--optimizer.weight_decay=x"], "optimizer.weight_decay is 'x', expected a number of at least 0"),
        (["--optimizer.betas=0.9"], "optimizer.betas is 0.9, expected two numbers from 0 up to below 1, such as [0.9,"),
        (["--optimizer.betas=[0.9,2]"], "optimizer.betas is [0.9, 2], expected two numbers"),
        (["--tokenizer.heads=0"], "tokenizer.heads is 0, expected a whole number of at least 1"),
        (["--tokenizer.dim=big"], "tokenizer.dim is 'big', expected a whole number of at least 1"),
        (["--tokenizer.patch_size=null"], "tokenizer.patch_size is None, expected a whole number of at least 1"),
        (["--quantizer.codebook_size=0"], "quantizer.codebook_size is 0, expected a whole number of at least 1"),
        (["--quantizer.dead_code_steps=0"], "dead_code_steps is 0, expected a whole number of at least 1 or null"),
        (["--data.image_size=64"], "data.image_size is 64, expected height and width, such as [64,64]"),
        (["--data.image_size=[64,0]"], "data.image_size is [64, 0], expected height and width"),
        (["--data.channels=1"], "data.channels is 1, expected 3"),
        (["--config=genie_redux", "--dynamics.blocks=0"], "dynamics.blocks is 0, expected a whole number of at least"),
        (["--config=genie_redux", "--lam.dim_head=1.5"], "lam.dim_head is 1.5, expected a whole number of at least 1"),
        (["--name=.."], "name is '..', expected"),
        (["--name=/tmp/x"], "name is '/tmp/x', expected"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, found, capsys):
    assert main.main([*words, "--check"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert found in error


def test_a_mistake_in_a_later_stage_ends_a_pipeline_before_its_first(tmp_path, capsys):
    words = ["--config=videos.yaml", f"--output_dpath={tmp_path / 'out'}", "--stage_processes=1", "--num_actions=0"]
    assert main.main(words) == 2
    assert "error: stage genie_redux: quantizer.codebook_size is 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_pipeline_asks_its_dataset_for_the_number_of_actions_before_its_first_stage(tmp_path, capsys):
    assert main.main(["--config=recordings.yaml", f"--output_dpath={tmp_path / 'out'}", "--dataset_name=gone"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "dataset_name=gone" in error
    assert not (tmp_path / "out").exists()


def test_a_pipeline_that_was_interrupted_while_it_generated_goes_on_with_that(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(pipeline, "_run_stage", lambda stage, *_: begun.append(stage.name))
    monkeypatch.setattr(pipeline, "_report", lambda *_: None)
    unfinished = tmp_path / "coinrun_plain" / "unfinished.json"
    unfinished.parent.mkdir()
    unfinished.write_text("{}")
    words = ["--config=quickstart.yaml", f"--output_dpath={tmp_path / 'out'}", f"--dataset_root_dpath={tmp_path}"]
    assert main.main(words) == 0 and begun[0] == "data"


def test_another_number_of_processes_than_asked_for_stops(capsys, monkeypatch):
    monkeypatch.setenv("LAMP_NUM_PROCESSES", "2")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main.main([]) == 2
    assert "--num_processes=2 was asked for, but 1 started" in capsys.readouterr().err


@pytest.mark.parametrize("config", WORLDS)
def test_a_world_without_a_tokenizer_says_how_to_get_one(config, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("LAMP_NUM_PROCESSES", raising=False)
    assert main.main([f"--config={config}", f"--train.save_root_dpath={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "--tokenizer_fpath=" in error and "bash run.sh --config=tokenizer.yaml" in error


def test_a_world_takes_the_tokenizer_that_the_default_command_leaves(tmp_path):
    (tmp_path / "tokenizer" / "tokenizer").mkdir(parents=True)
    cfg = composed("--config=genie_redux.yaml", f"--train.save_root_dpath={tmp_path}")
    main.use_default_tokenizer(cfg)
    assert cfg.network.tokenizer.path == str(tmp_path / "tokenizer" / "tokenizer")


def test_a_chosen_tokenizer_stays(tmp_path):
    cfg = composed("--config=genie_redux.yaml", "--tokenizer_fpath=mine")
    main.use_default_tokenizer(cfg)
    assert cfg.network.tokenizer.path == "mine"


def stub_work(monkeypatch, error):
    def work(cfg):
        raise error

    monkeypatch.delenv("LAMP_NUM_PROCESSES", raising=False)
    monkeypatch.setitem(sys.modules, "stub_of_work", types.SimpleNamespace(train=work))
    monkeypatch.setitem(main.WORK, "train", "stub_of_work:train")


@pytest.mark.parametrize(
    ("error", "code"),
    [(FileNotFoundError("no a,\n  take b"), 2), (FileExistsError("no"), 2), (KeyboardInterrupt(), 130)],
)
def test_an_error_of_the_user_shows_no_traceback(monkeypatch, capsys, error, code):
    stub_work(monkeypatch, error)
    monkeypatch.delenv("LAMP_TRACEBACK", raising=False)
    assert main.main([]) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_our_own_bugs_do_show_one(monkeypatch):
    stub_work(monkeypatch, AssertionError("shape"))
    with pytest.raises(AssertionError):
        main.main([])


def test_the_traceback_can_be_asked_for(monkeypatch):
    stub_work(monkeypatch, ValueError("bad"))
    monkeypatch.setenv("LAMP_TRACEBACK", "1")
    with pytest.raises(ValueError, match="bad"):
        main.main([])


# ---- help


def test_help_shows_the_command_and_every_key_with_its_value(capsys):
    assert main.main(["--config=genie_redux.yaml", "--help", "--train.batch_size=9"]) == 0
    shown = capsys.readouterr().out
    assert "bash run.sh --config=genie_redux.yaml --num_processes=7" in shown
    for line in (
        "--train.batch_size=9",
        "--dynamics.max_seq_len=8000",
        "--tokenizer_fpath=null",
        "--dynamics=maskgit|",
    ):
        assert line in shown


def test_help_tells_of_a_key_what_the_file_says_that_its_value_is_from(capsys):
    """configs/train/quickstart.yaml says "once, at the end" of its 100,000, which the default's 1,000 are not."""
    main.main(["--config=tokenizer.yaml", "--help"])
    assert "once, at the end" not in capsys.readouterr().out
    main.main(["--config=tokenizer.yaml", "--help", "--train=quickstart"])
    assert "--train.validate_every=100000                    once, at the end" in capsys.readouterr().out
    main.main(["--config=tokenizer.yaml", "--help", "--train.batch_size=9"])
    assert "--train.batch_size=9                             clips per process" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["play", "dream", "compare"])
def test_help_of_a_mode_that_needs_no_config_shows_its_own_keys_only(mode, capsys):
    assert main.main([f"--mode={mode}", "--help"]) == 0
    shown = capsys.readouterr().out
    keys = [line for line in shown.splitlines() if re.match(r"--[\w.]+=", line)]
    assert keys and all(line.startswith(f"--{mode}.") for line in keys)
    assert "bash run.sh --config=NAME.yaml" in shown and "tokenizer.yaml:" not in shown


def test_list_shows_all_configs_groups_and_options():
    shown = help.overview()
    for name in [*entries(), *(f"--{group}={option}" for group in groups() for option in options(group))]:
        assert name in shown


@pytest.mark.parametrize(
    "word",
    ["--help", "--list", "--check", "--train.bacth_size=2", "--train.batch_size=0", "--train.on_nonfinite=never"],
)
def test_torch_is_not_imported_before_there_is_work(word):
    program = f"import sys; from training.main import main; main([{word!r}]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True).returncode == 0


def test_composing_writes_nothing_and_stays_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    composed("--config=genie_redux.yaml")
    assert Path.cwd() == tmp_path and not list(tmp_path.iterdir())
