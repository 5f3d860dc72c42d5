"""Step folders are complete or invisible, and what is wrong with one is said in a line that names the file."""

import errno

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.data.holding import another_process_holds
from tests.training.workers.tiny import configure
from training import checkpoint
from training.checkpoint import Keep
from training.setup import load_weights
from training.trainer import Trainer, train


def write_weights(fpath):
    fpath.write_bytes(b"weights")


def save(run_dpath, step, last=None, **keep):
    return checkpoint.save(run_dpath, step, write_weights, {"step": step}, Keep(last, **keep))


def test_a_step_folder_is_found_again_and_latest_names_it(tmp_path):
    save(tmp_path, 5)
    saved = save(tmp_path, 1000)
    assert checkpoint.list_steps(tmp_path)[-1] == saved == tmp_path / "step-00001000"
    assert (tmp_path / "latest").read_text().strip() == saved.name
    assert checkpoint.load_state(saved) == {"step": 1000}
    assert checkpoint.find_start(tmp_path, "auto") == saved


def test_an_interrupted_save_leaves_no_step_behind(tmp_path):
    save(tmp_path, 1)

    def dies(fpath):
        fpath.write_bytes(b"wei")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 2, dies, {}, Keep(None))
    assert [path.name for path in checkpoint.list_steps(tmp_path)] == ["step-00000001"]
    assert (tmp_path / "latest").read_text().strip() == "step-00000001"
    checkpoint.clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]


def test_a_kill_before_latest_was_written_is_mended_at_the_next_start(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "latest").write_text("step-00000001\n")
    checkpoint.clean(tmp_path)
    assert (tmp_path / "latest").read_text() == "step-00000002\n"


def test_a_full_disk_is_one_line_naming_the_file_and_keeps_earlier_steps(tmp_path):
    save(tmp_path, 1)

    def full(fpath):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ValueError, match=r"step-00000002/model.safetensors .*No space left") as error:
        checkpoint.save(tmp_path, 2, full, {}, Keep(1))
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]


def test_only_the_newest_steps_stay(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, last=2)
    assert [checkpoint.step_of(path) for path in checkpoint.list_steps(tmp_path)] == [2, 3]


def test_milestones_and_the_best_step_stay_beside_the_newest(tmp_path):
    for step in range(1, 9):
        save(tmp_path, step, last=2, every=3, best=4 if step >= 4 else 1)
    assert [checkpoint.step_of(path) for path in checkpoint.list_steps(tmp_path)] == [3, 4, 6, 7, 8]
    assert (tmp_path / "best").read_text() == "step-00000004\n"


def test_a_fresh_run_never_enters_a_folder_with_content(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(ValueError, match=r"--train.resume_ckpt=auto .*--name="):
        checkpoint.find_start(tmp_path, None)
    assert checkpoint.find_start(tmp_path / "other", None) is None


def test_a_named_step_does_not_overwrite_the_steps_after_it_or_another_run(tmp_path):
    for step in (1, 2):
        save(tmp_path / "run", step)
    save(tmp_path / "other", 7)
    with pytest.raises(ValueError, match="already goes on to step 2"):
        checkpoint.find_start(tmp_path / "run", str(tmp_path / "run" / "step-00000001"))
    with pytest.raises(ValueError, match="already holds another run"):
        checkpoint.find_start(tmp_path / "run", str(tmp_path / "other"))
    assert checkpoint.find_start(tmp_path / "new", str(tmp_path / "run")).name == "step-00000002"


def test_a_resume_path_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train.resume_ckpt=.*nowhere"):
        checkpoint.find_start(tmp_path / "run", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("file", [checkpoint.STATE, checkpoint.WEIGHTS])
def test_a_truncated_checkpoint_is_one_line_naming_the_file(tmp_path, file):
    train(configure("noisy_line", tmp_path))
    fpath = tmp_path / "runs" / "tokenizer" / "tokenizer" / "step-00000004" / file
    fpath.write_bytes(fpath.read_bytes()[: fpath.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"step-00000004/{file} is truncated") as error:
        Trainer(configure("noisy_line", tmp_path, train__resume_ckpt="auto"))
    assert "\n" not in str(error.value)


def test_weights_of_another_model_are_refused_naming_both(tmp_path):
    train(configure("noisy_line", tmp_path))
    cfg = configure("tokenizer", tmp_path, name="mine", train__init_fpath=tmp_path / "runs" / "tokenizer" / "tokenizer")
    with pytest.raises(ValueError, match="holds a NoisyLine, but this run trains a STViViT"):
        Trainer(cfg)
    assert not (tmp_path / "runs" / "tokenizer" / "mine").exists()


def test_a_warm_start_takes_the_weights_and_nothing_else(tmp_path):
    train(configure("noisy_line", tmp_path))
    source = tmp_path / "runs" / "tokenizer" / "tokenizer"
    warm = Trainer(configure("noisy_line", tmp_path, name="warm", train__init_fpath=source))
    cold = Trainer(configure("noisy_line", tmp_path, name="cold"))
    config = cold.config
    assert warm.state.step == 0 and not warm.state.parts["model"].optimizer.state
    load_weights(cold.state.model, source, config, "train.init_fpath")
    for name, value in warm.state.weights.items():
        assert torch.equal(value, cold.state.weights[name])


def test_a_run_folder_that_cannot_be_made_is_named_before_a_model_is_built(tmp_path):
    (tmp_path / "file").touch()
    cfg = configure("noisy_line", tmp_path, train__save_root_dpath=tmp_path / "file" / "runs")
    cfg.network = {"_target_": "nothing.that.could.be.built"}
    with pytest.raises(
        ValueError, match=r"^cannot write to .*runs/.* \(.*/file is a file\); set train.save_root_dpath"
    ):
        Trainer(cfg)


def test_a_run_folder_that_the_system_refuses_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    refused = pytest.raises(ValueError, match=r"^cannot write to .*/file/run \(Not a directory\); set train.save_root")
    with refused, checkpoint.run_folder(tmp_path / "file" / "run"):
        pass


def test_a_run_folder_in_which_another_process_trains_is_refused_and_stays_as_it_is(tmp_path):
    train(configure("noisy_line", tmp_path, train__num_train_steps=2))
    folder = tmp_path / "runs" / "tokenizer" / "tokenizer"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    longer = configure("noisy_line", tmp_path, train__num_train_steps=4, train__resume_ckpt="auto")
    with another_process_holds(folder / checkpoint.LOGS) as holder:
        with pytest.raises(
            ValueError, match=rf"is being written by another process \(process {holder.pid} on .*--name"
        ):
            train(longer)
        assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    AcceleratorState._reset_state(reset_partial_state=True)
    train(longer)
    assert (folder / "step-00000004").is_dir()
