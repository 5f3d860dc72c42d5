"""Several processes on a CPU, started as run.sh does without GPUs; `accelerate launch` would start one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


def launch(num_processes: int, module: str, *words: str) -> subprocess.CompletedProcess:
    """Run `python -m module words` in so many processes and wait; stdout holds stderr too."""
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}",
         "-m", module, *words],
        cwd=REPOSITORY,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # torchrun's workers too
    return subprocess.CompletedProcess(process.args, process.returncode, output)
