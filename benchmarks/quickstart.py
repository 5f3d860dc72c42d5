"""Seconds per stage of the quickstart: `python -m benchmarks.quickstart [--key=value …]`.

Runs the pipeline (finished stages are not run again; their recorded seconds count) and compares its length with the
twelve minutes that it may take on two CPU cores. For a fresh measurement give it a folder of its own:
`python -m benchmarks.quickstart --name=benchmark --dataset_root_dpath=outputs/benchmark/datasets`.
"""

import json
import sys
from pathlib import Path

from benchmarks import machine
from training import command_line, pipeline

LIMIT_SECONDS = 12 * 60


def main(words: list[str]) -> None:
    if {"--help", "-h"} & {*words}:
        print(__doc__)
        return
    cfg = command_line.compose(command_line.parse(["--config=quickstart.yaml", *words]))
    pipeline.run(cfg)
    names = [*(stage.name for stage in pipeline.read_stages(cfg)), pipeline.REPORT]
    seconds = {name: pipeline.stage_seconds(Path(cfg.output_dpath), name) for name in names}
    total = sum(seconds.values())
    print()
    for name, value in seconds.items():
        print(f"{name:<30} {value:7.1f} s  {value / total:5.1%}")
    print(f"{'all stages':<30} {total:7.1f} s  of {LIMIT_SECONDS} s")
    result = {
        "name": "quickstart",
        "value": round(total, 1),
        "unit": "s",
        "reference": LIMIT_SECONDS,
        "ratio": round(total / LIMIT_SECONDS, 3),
        "stages": seconds,
        "machine": machine.describe(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
