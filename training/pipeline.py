"""The whole job, stage after stage: data, tokenizer, world models, evaluation, report.

Every stage is a command line that a person could type; it is printed, then run. A stage is finished when its record
(`<output_dpath>/stages/<stage>.json`) holds the same resolved settings and what it made is there; an interrupted one
goes on where it stopped.
"""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from data.episodes import read_info, write_json
from models import pretrained
from training import command_line

ROOT = Path(__file__).resolve().parent.parent
ONLY_SHOWN = ("play", "dream")  # groups that no training or evaluation reads
GENERATOR_CONFIGS = ROOT / "data_generation" / "configs"
COMMANDS = ("generate", "train", "eval")
ACTIONS_KEY = "num_actions"  # of a pipeline: as many as its dataset has, where it is null
RECORDED = "models.actions.RecordedActions"
REPORT = "report"  # the last stage, which is no command


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
        processes = [f"--num_processes={self.num_processes}"] if self.num_processes > 1 else []
        return ["bash", "run.sh", *self._choices(), *processes]

    def resolved(self) -> DictConfig:
        """The configuration that a train or eval stage runs with."""
        return command_line.compose(command_line.parse(self._choices()))

    def _choices(self) -> list[str]:
        mode = [] if self.command == "train" else [f"--mode={self.command}"]
        values = [f"--{key}={_text(value)}" for key, value in [*self.options.items(), *_flatten(self.settings)]]
        return [f"--config={self.config}", *mode, *values]

    def fingerprint(self) -> str:
        """A hash of all that decides what comes out: resolved settings, and for an evaluation the weights' content."""
        if self.command == "generate":
            settings = [file.read_text() for file in sorted(GENERATOR_CONFIGS.glob("*.yaml"))] + self._choices()
        else:
            cfg = self.resolved()
            groups = OmegaConf.to_container(cfg, resolve=True)
            settings = [{name: values for name, values in groups.items() if name not in ONLY_SHOWN}]
            if self.command == "eval":
                settings.append(pretrained.content_hash(cfg.eval.model_fpath))
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def product(self) -> Path:
        """What is there once the stage is finished: a dataset's or an evaluation's file, or a run folder."""
        if self.command == "generate":
            text = (GENERATOR_CONFIGS / f"{self.config}.yaml").read_text()
            return Path(self.settings["root_dpath"]) / OmegaConf.create(text).name / "info.json"
        cfg = self.resolved()
        if self.command == "train":
            return Path(cfg.train.save_root_dpath) / cfg.model / cfg.name
        return Path(cfg.eval.save_root_dpath) / cfg.eval.model_name / cfg.eval.dataset_name / cfg.name / "metrics.json"

    def is_complete(self) -> bool:
        """Whether the product is all there. A training that a signal ended leaves a run folder too, but unfinished."""
        product = self.product()
        if self.command != "train":
            return product.is_file()
        try:
            return pretrained.read_header(product)["metadata"]["finished"]
        except FileNotFoundError:
            return False


def run(cfg: DictConfig) -> None:
    """Run all stages of `cfg` that are not finished, then write the report to `<output_dpath>/report`.

    Raises ValueError where a training was started with other settings before, or a stage fails.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("a pipeline starts its stages itself: leave --num_processes out and set --stage_processes=N")
    output_dpath = Path(cfg.output_dpath)
    stages = read_stages(cfg)
    _check(stages)
    for number, stage in enumerate(stages, start=1):
        _run_stage(stage, f"[{number}/{len(stages)}] {stage.name}", output_dpath / "stages")
    began = time.monotonic()
    _report(stages, output_dpath)
    _write_record(output_dpath / "stages", REPORT, finished=True, seconds=time.monotonic() - began)


def read_stages(cfg: DictConfig) -> list[Stage]:
    """The stages of a pipeline config, in order; null leaves one out.

    Raises ValueError for an unknown command; where the number of actions is the dataset's, ValueError for one that has
    none and FileNotFoundError for none at all.
    """
    if cfg.get(ACTIONS_KEY, 0) is None:
        names = read_info(cfg.dataset_root_dpath, cfg.dataset_name)["action_names"]
        if names is None:
            raise ValueError(f"dataset_name={cfg.dataset_name} has no actions; --config=videos.yaml finds some itself")
        cfg = OmegaConf.merge(cfg, {ACTIONS_KEY: len(names)})
    stages = []
    for name, node in OmegaConf.to_container(cfg.stages, resolve=True).items():
        if node is None:
            continue
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


def _check(stages: list[Stage]) -> None:
    """Raise ValueError for a setting that would end a stage: before the first one, not after those that work."""
    from training.main import check

    makes_data = any(stage.command == "generate" for stage in stages)  # which may be half there
    for stage in stages:
        try:
            if stage.command != "generate":
                cfg = stage.resolved()
                check(cfg)
                if not makes_data:
                    _check_actions(cfg)
        except ValueError as error:
            raise ValueError(f"stage {stage.name}: {error}") from error


def _check_actions(cfg: DictConfig) -> None:
    """Raise ValueError where the stage trains on recorded actions that its dataset does not have."""
    from training.settings import TrainSettings
    from training.setup import check_recorded_actions

    if cfg.mode != "train" or cfg.get("actions", {}).get("_target_") != RECORDED:
        return
    settings = TrainSettings.from_config(cfg.train)
    try:
        info = read_info(settings.dataset_root_dpath, settings.dataset_name)
    except FileNotFoundError:  # finished stages do without it, and the first that needs it says where it is missing
        return
    check_recorded_actions(len(info["action_names"] or ()), cfg.actions.num_actions, settings, key=ACTIONS_KEY)


def _num_processes(asked: int | None) -> int:
    """On a CPU small steps are mostly overhead, which two processes of one thread share better than two threads."""
    if asked is not None:
        return asked
    import torch

    return 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def stage_seconds(output_dpath: Path, stage: str) -> float | None:
    """Wall seconds that a finished stage took, over all its starts; None while it is not finished."""
    record = _read_record(output_dpath / "stages", stage)
    return record["seconds"] if record and record["finished"] else None


def _run_stage(stage: Stage, title: str, records_dpath: Path) -> None:
    record = _read_record(records_dpath, stage.name)
    fingerprint = stage.fingerprint()
    command = shlex.join(stage.words())
    if record is not None and record["fingerprint"] != fingerprint:
        # The generator refuses other data under the same name itself; an evaluation is simply measured again.
        if stage.command == "train" and stage.product().exists():
            raise ValueError(
                f"stage {stage.name} was run with other settings in {records_dpath.parent} (see stages/"
                f"{stage.name}.json); choose another --name, or remove that folder"
            )
        record = None
    if record is not None and record["finished"] and stage.is_complete():
        print(f"\n{title}: finished before, {record['seconds']:.0f} s  ({command})", flush=True)
        return
    print(f"\n{title}\n{command}", flush=True)
    seconds_before = record["seconds"] if record and not record["finished"] else 0.0
    began = time.monotonic()

    def note(finished: bool) -> None:
        seconds = seconds_before + time.monotonic() - began
        facts = {"command": command, "fingerprint": fingerprint, "finished": finished, "seconds": seconds}
        _write_record(records_dpath, stage.name, **facts)

    note(finished=False)
    code = _run_to_its_end(stage.words())
    note(finished=False)
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise ValueError(f"stage {stage.name} ended with exit code {code}; its message is above, its command {command}")
    if not stage.is_complete():
        raise ValueError(f"stage {stage.name} was stopped before its end; the same command goes on from there")
    note(finished=True)


def _run_to_its_end(words: list[str]) -> int:
    """The exit code of a command. Ctrl-C and SIGTERM are the command's to answer: a training saves, then it ends."""
    process = subprocess.Popen(words, cwd=ROOT)

    def pass_on(number: int, frame) -> None:
        if number == signal.SIGTERM:  # the terminal sends Ctrl-C to the command as well
            process.terminate()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(stages: list[Stage], output_dpath: Path) -> None:
    """Gather what the evaluation stages wrote into one report; its pictures lie beside it as files too."""
    from training import report

    folder = output_dpath / "report"
    evaluations, curves = {}, {}
    for stage in stages:
        if stage.command == "train":
            curves[stage.name] = stage.product() / "logs" / "metrics.jsonl"
        elif stage.command == "eval":
            evaluations |= dict.fromkeys(json.loads(stage.product().read_text()), stage.product().parent)
    commands = {stage.name: shlex.join(stage.words()) for stage in stages}
    page = report.write_report(folder, evaluations, curves, commands=commands)
    print(f"\nreport: {page}\nplay:   bash run.sh --mode=play", flush=True)


def _read_record(records_dpath: Path, stage: str) -> dict | None:
    fpath = records_dpath / f"{stage}.json"
    return json.loads(fpath.read_text()) if fpath.is_file() else None


def _write_record(records_dpath: Path, stage: str, *, seconds: float, **facts) -> None:
    records_dpath.mkdir(parents=True, exist_ok=True)
    write_json(records_dpath / f"{stage}.json", facts | {"seconds": round(seconds, 1)})


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
