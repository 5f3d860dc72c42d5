"""Settings: right values come through typed, wrong ones end in a line that names the key."""

import pytest

from training.command_line import compose, parse
from training.settings import EvalSettings, ScheduleSettings, TrainSettings


@pytest.fixture(scope="module")
def cfg():
    return compose(parse(["--config=genie_redux.yaml"]))


def changed(node, **values):
    node = node.copy()
    for key, value in values.items():
        node[key] = value
    return node


def test_the_yaml_fills_every_field(cfg):
    train, evaluation = TrainSettings.from_config(cfg.train), EvalSettings.from_config(cfg.eval)
    assert (train.batch_size, train.grad_accum, train.num_frames, train.num_train_steps) == (3, 4, 16, 150_000)
    assert train.sample_num_frames == 15
    assert train.dataset_name == "coinrun_v2.0.0"
    assert evaluation.dataset_name == "coinrun_v2.0.0_test"
    assert evaluation.session_graphs == "false"  # a word, though yaml reads no word
    assert evaluation.model_fpath == "./checkpoints/genie_redux/genie_redux"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("batch_size", 0, "at least 1"),
        ("batch_size", 2.5, "a whole number"),
        ("batch_size", True, "a whole number"),
        ("batch_size", None, "a whole number"),
        ("num_frames", 1, "at least 2"),
        ("seed", -1, "at least 0"),
        ("num_train_steps", "many", "a whole number"),
        ("max_train_seconds", 0, "above 0"),
        ("max_train_seconds", float("inf"), "a number or null"),
        ("ema_decay", 1.0, "between 0 and 1"),
        ("mixed_precision", "int8", "one of null, no, bf16, fp16"),
        ("logger", "mlflow", "one of tensorboard, wandb, none"),
        ("keep_last", 0, "at least 1"),
        ("sample_num_frames", 16, "at most train.num_frames - 1 = 15"),
    ],
)
def test_an_impossible_training_value_names_its_key(cfg, key, value, expected):
    with pytest.raises(ValueError, match=rf"^train\.{key} is .*{expected}") as error:
        TrainSettings.from_config(changed(cfg.train, **{key: value}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("inference_method", "both", "one of one_go, autoregressive"),
        ("split", "dev", "one of null, train, validation, test"),
        ("split", "train", "eval.allow_train=true"),
        ("num_frames", 11, r"num_first_frames \+ eval.sample_num_frames = 2 \+ 10"),
        ("delta_psnr_horizon", 11, "at most eval.sample_num_frames = 10"),
        ("action_to_take", -2, "at least -1"),
        ("sample_temperature", -0.1, "at least 0"),
        ("require", 7, "a list of texts"),
        ("num_clips", 0, "at least 1"),
        ("session_graphs", "always", "one of auto, true, compiled, false"),
    ],
)
def test_an_impossible_evaluation_value_names_its_key(cfg, key, value, expected):
    with pytest.raises(ValueError, match=rf"^eval\.{key} is .*{expected}"):
        EvalSettings.from_config(changed(cfg.eval, **{key: value}))


def test_a_key_that_nobody_reads_is_an_error(cfg):
    with pytest.raises(ValueError, match=r"^train\.bacth_size is not a setting"):
        TrainSettings.from_config({**cfg.train, "bacth_size": 3})


def test_a_missing_key_is_an_error(cfg):
    values = {**cfg.train}
    del values["log_every"]
    with pytest.raises(ValueError, match=r"^train\.log_every is missing"):
        TrainSettings.from_config(values)


@pytest.mark.parametrize("spelling", ["no", False, None])
def test_no_means_no_checkpoint_to_resume(cfg, spelling):
    assert TrainSettings.from_config(changed(cfg.train, resume_ckpt=spelling)).resume_ckpt is None


def test_a_run_cannot_both_resume_and_start_from_weights(cfg):
    with pytest.raises(ValueError, match=r"^train\.init_fpath"):
        TrainSettings.from_config(changed(cfg.train, resume_ckpt="auto", init_fpath="x"))


def test_one_name_is_a_list_of_one(cfg):
    assert EvalSettings.from_config(changed(cfg.eval, require="fid")).require == ["fid"]
    assert EvalSettings.from_config(changed(cfg.eval, leave_out="fid,fvd")).leave_out == ["fid", "fvd"]


def test_yaml_false_is_the_precision_no(cfg):
    assert TrainSettings.from_config(changed(cfg.train, mixed_precision=False)).mixed_precision == "no"


def test_whole_numbers_become_floats_where_floats_are_meant(cfg):
    seconds = TrainSettings.from_config(changed(cfg.train, max_train_seconds=60)).max_train_seconds
    assert isinstance(seconds, float) and seconds == 60


def test_the_optimizer_node_splits_into_schedule_and_optimizer(cfg):
    schedule, node = ScheduleSettings.from_optimizer(cfg.optimizer)
    assert (schedule.warmup_steps, schedule.max_grad_norm, schedule.kind) == (5000, 10, "cosine")
    assert set(node) == {"_target_", "_partial_", "lr", "betas", "weight_decay"}
    assert (node.lr, node.betas, node.weight_decay) == (1e-4, [0.9, 0.99], 1e-4)


@pytest.mark.parametrize(("key", "value"), [("kind", "linear"), ("min_lr_ratio", 2), ("warmup_steps", -1)])
def test_an_impossible_schedule_names_its_key(cfg, key, value):
    with pytest.raises(ValueError, match=rf"^optimizer\.{key} is "):
        ScheduleSettings.from_optimizer(changed(cfg.optimizer, **{key: value}))
