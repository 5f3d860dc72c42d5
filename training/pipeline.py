"""The whole job, stage after stage: data, tokenizer, world models, evaluation, report.

Every stage is a command line that a person could type; it is printed, then run. A stage is finished when its record
(`<output_dpath>/stages/<stage>.json`) holds the same resolved settings; an interrupted one goes on where it stopped.
"""

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from training import checkpoint, command_line

ROOT = Path(__file__).resolve().parent.parent
REPORT = "report"  # the last stage, which is no command
COMMANDS = ("generate", "train", "eval")


@dataclass(frozen=True)
class Stage:
    """One command of the pipeline.

    command: generate, train or eval. config: its entry file. options: group choices. settings: nested values.
    """

    name: str
    command: str
    config: str
    options: dict
    settings: dict
    num_processes: int

    def words(self) -> list[str]:
        """The command line."""
        if self.command == "generate":
            return ["python", "data_generation/generate.py", *self._choices()]
        processes = [f"--num_processes={self.num_processes}"] if self.num_processes > 1 else []
        return ["bash", "run.sh", *self._choices(), *processes]

    def resolved(self) -> DictConfig:
        """The configuration that a train or eval stage runs with."""
        return command_line.compose(command_line.parse(self._choices()))

    def _choices(self) -> list[str]:
        mode = [f"--mode={self.command}"] if self.command == "eval" else []
        values = [f"--{key}={_text(value)}" for key, value in [*self.options.items(), *_flatten(self.settings)]]
        return [f"--config={self.config}", *mode, *values]

    def fingerprint(self) -> str:
        """A hash of what the command resolves to, so that any change of a config file makes another stage of it."""
        if self.command == "generate":
            resolved = [(ROOT / "data_generation" / "configs" / f"{self.config}.yaml").read_text(), *self.words()]
        else:
            resolved = OmegaConf.to_container(self.resolved(), resolve=True)
        return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()


def run(cfg: DictConfig) -> None:
    """Run all stages of `cfg` that are not finished, then write the report to `<output_dpath>/report`.

    Raises ValueError where a stage was run with other settings before, or fails.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("a pipeline starts its stages itself: leave --num_processes out and set --stage_processes=N")
    output_dpath = Path(cfg.output_dpath)
    stages = read_stages(cfg)
    for number, stage in enumerate(stages, start=1):
        _run_stage(stage, f"[{number}/{len(stages)}] {stage.name}", output_dpath / "stages")
    began = time.monotonic()
    _report(stages, output_dpath)
    record = {"finished": True, "seconds": round(time.monotonic() - began, 1)}
    checkpoint.write_text(output_dpath / "stages" / f"{REPORT}.json", json.dumps(record) + "\n")


def read_stages(cfg: DictConfig) -> list[Stage]:
    """The stages of a pipeline config, in order. Raises ValueError for an unknown command."""
    stages = []
    for name, node in OmegaConf.to_container(cfg.stages, resolve=True).items():
        if node["command"] not in COMMANDS:
            raise ValueError(f"stages.{name}.command is {node['command']!r}, expected one of {', '.join(COMMANDS)}")
        stages.append(
            Stage(
                name=name,
                command=node["command"],
                config=node["config"],
                options=node.get("options") or {},
                settings=node.get("settings") or {},
                num_processes=1 if node["command"] == "generate" else _num_processes(cfg.stage_processes),
            )
        )
    return stages


def _num_processes(asked: int | None) -> int:
    """On a CPU small steps are mostly overhead, which two processes of one thread share better than two threads."""
    if asked is not None:
        return asked
    import torch

    return 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def stage_seconds(output_dpath: Path, stage: str) -> float | None:
    """Wall seconds that a finished stage took, over all its starts; None while it is not finished."""
    record = _read_record(output_dpath / "stages" / f"{stage}.json")
    return record["seconds"] if record and record["finished"] else None


def _run_stage(stage: Stage, title: str, records_dpath: Path) -> None:
    record_fpath = records_dpath / f"{stage.name}.json"
    record = _read_record(record_fpath)
    fingerprint = stage.fingerprint()
    command = shlex.join(stage.words())
    if record is not None and record["fingerprint"] != fingerprint:
        raise ValueError(
            f"stage {stage.name} was run with other settings in {records_dpath.parent} (see {record_fpath.name}); "
            "choose another --name, or remove that folder"
        )
    if record is not None and record["finished"]:
        print(f"\n{title}: finished before, {record['seconds']:.0f} s  ({command})", flush=True)
        return
    print(f"\n{title}\n{command}", flush=True)
    seconds_before = record["seconds"] if record else 0.0
    began = time.monotonic()

    def write(finished: bool) -> None:
        seconds = seconds_before + time.monotonic() - began
        facts = {"command": command, "fingerprint": fingerprint, "finished": finished, "seconds": round(seconds, 1)}
        checkpoint.write_text(record_fpath, json.dumps(facts, indent=2) + "\n")

    records_dpath.mkdir(parents=True, exist_ok=True)
    write(finished=False)
    words = stage.words()
    if words[0] == "python":
        words[0] = sys.executable
    try:
        code = subprocess.run(words, cwd=ROOT, check=False).returncode
    finally:
        write(finished=False)
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise ValueError(
            f"stage {stage.name} ended with exit code {code}; its message is above, its command: {command}"
        )
    write(finished=True)


def _report(stages: list[Stage], output_dpath: Path) -> None:
    """Gather what the evaluation stages wrote into one report; its pictures lie beside it as files too."""
    from training import report

    folder = output_dpath / "report"
    results, pictures, curves = {}, {}, {}
    for stage in stages:
        if stage.command == "generate":
            continue
        cfg = stage.resolved()
        if stage.command == "train":
            curves[stage.name] = Path(cfg.train.save_root_dpath) / cfg.model / cfg.name / "logs" / "metrics.jsonl"
            continue
        evaluation_dpath = Path(cfg.eval.save_root_dpath) / cfg.eval.model_name / cfg.eval.dataset_name / cfg.name
        found = json.loads((evaluation_dpath / "metrics.json").read_text())
        results |= found
        pictures |= dict.fromkeys(found, evaluation_dpath / "samples")
    commands = {stage.name: shlex.join(stage.words()) for stage in stages}
    page = report.write_report(folder, results, curves, pictures, commands=commands)
    print(f"\nreport: {page}", flush=True)


def _read_record(fpath: Path) -> dict | None:
    return json.loads(fpath.read_text()) if fpath.is_file() else None


def _flatten(node: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"[{','.join(_text(item) for item in value)}]" if isinstance(value, list) else str(value)
