"""All that is worth knowing about Lamp on this machine, in a few minutes: `bash benchmarks/gpu_suite.sh --out DIR`.

Generates data, runs the tests that need a GPU, trains a small tokenizer and a small guided world and both in their
published sizes, evaluates them and measures training steps. Every stage is one command (`benchmarks/gpu_plan.py`),
printed, then run with its output in a log. The minutes hold for one call; stages get shares of them. The same call goes
on: finished stages are skipped, an interrupted training goes on from its checkpoint, failed stages are tried again.

DIR gets `results.json` (rewritten after every stage) and archives in pieces of at most 15 MiB: logs, pictures and
weights in bf16 (`python -m benchmarks.delivery DIR --to=FOLDER` joins them). DIR/work, or --work, holds the rest:
datasets, checkpoints, evaluations and the stages' records. Without a GPU a few stages run at tiny sizes.

Exit code: 0 all stages are finished; 1 a stage failed; 3 the time was up; 130 Ctrl-C; 143 SIGTERM.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import delivery, gpu_plan, machine
from benchmarks.delivery import Member
from benchmarks.gpu_plan import Stage
from benchmarks.stage_run import Deadline, Record, run_stage
from data.episodes import write_json
from training.record import git_revision

SHORTEST_STAGE = 10  # seconds; with less left none is begun
SHORTEST_LIMIT = 45  # a stage may take twice its share, and this long in any case
FOR_DELIVERY = 0.03  # of the minutes
EXIT_FAILED, EXIT_UNFINISHED = 1, 3


def main(words: list[str]) -> int:
    arguments = parse(words)
    work = (arguments.work or arguments.out / "work").resolve()
    tiny = arguments.tiny or not torch.cuda.is_available()
    arguments.out.mkdir(parents=True, exist_ok=True)
    stages = gpu_plan.stages(work, arguments.minutes, tiny=tiny)
    with Deadline(60 * arguments.minutes * (1 - FOR_DELIVERY)) as deadline:
        records = run_all(stages, work, arguments, deadline)
    deliver(stages, work, arguments)
    finished = sum(record.status == "finished" for record in records)
    print(json.dumps(summary(records) | {"machine": machine.describe()}))
    if deadline.signal_number:
        return 128 + deadline.signal_number
    if any(record.status == "failed" for record in records):
        return EXIT_FAILED
    return 0 if finished == len(stages) else EXIT_UNFINISHED


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call (9)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="for what stays on this machine (DIR/work)")
    parser.add_argument("--weights_mib", type=float, help="weights in DIR altogether, in the plan's order (all)")
    parser.add_argument("--tiny", action="store_true", help="sizes of seconds, on a GPU too")
    arguments = parser.parse_args(words)
    if arguments.minutes <= 0:
        parser.error(f"--minutes={arguments.minutes:g}, expected more than 0")
    return arguments


# ------------------------------------------------------------------------------------------------------------- running


def run_all(stages: list[Stage], work: Path, arguments: argparse.Namespace, deadline: Deadline) -> list[Record]:
    """Run what is not finished, in order, until the time is up; one record for every stage."""
    records = [Record.read(work, stage) for stage in stages]
    for number, stage in enumerate(stages):
        title = f"[{number + 1}/{len(stages)}] {stage.name}"
        if records[number].status == "finished":
            print(f"{title}: finished before, {records[number].seconds:.0f} s", flush=True)
        elif deadline.signal_number or deadline.left < SHORTEST_STAGE:
            print(f"{title}: not reached, {deadline.reason}", flush=True)
        else:
            print(f"{title}\n  {stage.command}", flush=True)
            limit = max(2 * stage.seconds, SHORTEST_LIMIT)
            records[number] = run_stage(stage, records[number], work, deadline, limit)
            print(f"  {records[number].line()}", flush=True)
        write_results(records, arguments)
    return records


def write_results(records: list[Record], arguments: argparse.Namespace) -> None:
    results = {
        **summary(records),
        "minutes": arguments.minutes,
        "git": git_revision(),
        "machine": machine.describe(),
        "stages": {record.name: record.as_dict() for record in records},
    }
    write_json(arguments.out / "results.json", results)


def summary(records: list[Record]) -> dict[str, Any]:
    finished = sum(record.status == "finished" for record in records)
    return {
        "name": "gpu_suite",
        "value": finished,
        "unit": "stages",
        "reference": len(records),
        "ratio": round(finished / len(records), 3),
    }


# ---------------------------------------------------------------------------------------------------------- delivering


def deliver(stages: list[Stage], work: Path, arguments: argparse.Namespace) -> None:
    """Logs, pictures and weights of whatever is there, into DIR."""
    trainings = [stage for stage in stages if stage.kind == "train" and stage.product.is_dir()]
    evaluations = [stage for stage in stages if stage.kind == "eval" and stage.product.is_file()]
    logs = [Member(f"logs/{fpath.name}", fpath) for fpath in sorted((work / "logs").glob("*.log"))]
    for stage in trainings:
        found = (stage.product / name for name in ("config.yaml", "record.json", "logs/metrics.jsonl"))
        logs += [Member(f"logs/{stage.name}/{fpath.name}", fpath) for fpath in found if fpath.is_file()]
    pictures = []
    for stage, folder in [(s, s.product) for s in trainings] + [(s, s.product.parent) for s in evaluations]:
        found = (fpath for fpath in sorted(folder.rglob("*")) if fpath.suffix in (".gif", ".png"))
        pictures += [Member(f"pictures/{stage.name}/{fpath.relative_to(folder)}", fpath) for fpath in found]
    delivery.write_archive(arguments.out, "logs.tar.gz", logs)
    delivery.write_archive(arguments.out, "pictures.tar", pictures)
    narrowed = work / "narrowed"
    delivery.write_archive(arguments.out, "weights.tar", weights(trainings, narrowed, arguments.weights_mib))
    shutil.rmtree(narrowed, ignore_errors=True)


def weights(trainings: list[Stage], folder: Path, limit_mib: float | None) -> list[Member]:
    """The weights of the trainings that have any and fit into the limit, those of the plan's first ones first."""
    members, room = [], float("inf") if limit_mib is None else limit_mib * delivery.MIB
    for stage in trainings:
        try:
            fpaths = delivery.narrowed_weights(stage.product, folder / stage.name)
        except FileNotFoundError:
            continue  # stopped before its first checkpoint
        needed = sum(fpath.stat().st_size for fpath in fpaths)
        if needed > room:
            print(f"weights of {stage.name} stay in {stage.product}: {needed / delivery.MIB:.0f} MiB", flush=True)
            continue
        room -= needed
        members += [Member(f"weights/{stage.name}/{fpath.name}", fpath) for fpath in fpaths]
    return members


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
