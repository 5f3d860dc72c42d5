import json
import subprocess

from training import record

INFO = {
    "name": "noise",
    "splits": {
        "train": {"shards": [{"file": "train-00000.h5", "hash": "a"}, {"file": "train-00001.h5", "hash": "b"}]},
        "validation": {"shards": [{"file": "validation-00000.h5", "hash": "c"}]},
    },
}


def test_every_start_is_kept(tmp_path):
    for step in (0, 120):
        known = {"dataset_info": INFO, "device": "cpu", "num_processes": 2, "config": {"seed": step}}
        record.add_start(tmp_path, step=step, command="bash run.sh --seed=0", **known)
    starts = json.loads((tmp_path / record.RECORD).read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 120]
    first = starts[0]
    assert first["packages"]["torch"] and first["packages"]["accelerate"] and first["time"]
    assert first["command"] == "bash run.sh --seed=0" and first["num_processes"] == 2
    assert [start["config"]["seed"] for start in starts] == [0, 120]
    assert first["dataset_sha256"] == record.dataset_hash(INFO)


def test_the_dataset_hash_depends_on_content_and_split_alone():
    def with_hash(hash: str) -> dict:
        shards = [{"file": "train-00000.h5", "hash": hash}]
        return {"name": "other", "splits": {"train": {"shards": shards}}}

    assert record.dataset_hash(with_hash("a")) != record.dataset_hash(with_hash("b"))
    reordered = INFO | {"splits": dict(reversed(INFO["splits"].items()))}
    assert record.dataset_hash(reordered) == record.dataset_hash(INFO)


def test_the_git_revision_is_the_commit_and_says_if_files_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "CHECKOUT", tmp_path)
    assert record.git_revision() is None

    def git(*words: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        return subprocess.run(["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    assert record.git_revision() == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert record.git_revision() == git("rev-parse", "HEAD") + "+changes"


def test_what_differs_from_the_last_start_is_told_by_key(tmp_path):
    before = {"train": {"batch_size": 4, "seed": 0, "resume_ckpt": None}, "network": {"blocks": [1, 2]}, "name": "a"}
    now = {"train": {"batch_size": 2, "seed": 0, "resume_ckpt": "auto"}, "network": {"blocks": [1, 2]}, "name": "b"}
    assert record.changes(tmp_path, config=now, dataset_info=INFO, num_processes=2) == []
    facts = {"config": before, "dataset_info": INFO, "num_processes": 1}
    record.add_start(tmp_path, **facts, step=0, command="", device="cpu")
    assert record.changes(tmp_path, **facts) == []
    assert record.changes(tmp_path, config=now, dataset_info=INFO, num_processes=2) == [
        "processes=2 (was 1)",
        "train.batch_size=2 (was 4)",
    ]
    (change,) = record.changes(tmp_path, **facts | {"dataset_info": {"splits": {}}})
    assert change.startswith("dataset_sha256=")
