"""Two machines (here: two `run.sh` on one host, one process each) train what one machine with two processes does."""

import os
import socket
import subprocess
import sys

import torch
from safetensors.torch import load_file

from tests.training.workers import tiny
from tests.training.workers.launch import REPOSITORY, launch


def words(root, name: str) -> list[str]:
    keys = [*tiny.TRAINING.split(), *tiny.SMALL["tokenizer"].split()]
    keys += [f"train.dataset_root_dpath={root / 'data'}", f"train.save_root_dpath={root / 'runs'}", f"name={name}"]
    return ["--config=tokenizer.yaml", *(f"--{key}" for key in keys)]


def start_machine(rank: int, port: int, *keys: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", "run.sh", *keys, "--num_machines=2", "--num_processes=2", f"--machine_rank={rank}",
         "--main_process_ip=127.0.0.1", f"--main_process_port={port}"],
        cwd=REPOSITORY,
        env=os.environ | {"LAMP_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_machines_of_one_process_train_the_weights_of_one_machine_of_two(tmp_path):
    tiny.write_data(tmp_path / "data")
    port = free_port()
    machines = [start_machine(rank, port, *words(tmp_path, "two-machines")) for rank in (1, 0)]
    try:
        outputs = [machine.communicate(timeout=120)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.terminate()
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    done = launch(2, "training.main", *words(tmp_path, "one-machine"))
    assert done.returncode == 0, done.stdout
    two, one = (
        load_file(tmp_path / "runs" / "tokenizer" / name / "step-00000004" / "model.safetensors")
        for name in ("two-machines", "one-machine")
    )
    assert one.keys() == two.keys()
    assert [name for name, value in one.items() if not torch.equal(two[name], value)] == []
