"""Train a player for data generation: `python data_generation/train_agent.py --config=coinrun_small`.

Composes `data_generation/configs/agents/<config>.yaml` (or a yaml file of your own), trains a PPO agent, measures it on
levels that it never saw beside random actions and constant RIGHT_JUMP, and writes one file for
`generate.py --agent_fpath=…`. `--list` shows the configs, `--help` the keys.
"""

import signal
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    from data_generation.composition import parse, read_values
except ModuleNotFoundError:
    sys.exit("error: this Python lacks what requirements.txt lists; make the environment with bash run.sh --mode=setup")
from data_generation.agent_settings import AgentSettings

CONFIGS_DPATH = Path(__file__).resolve().parent / "configs" / "agents"
DEFAULT_CONFIG = "coinrun_small"


def main(arguments: list[str]) -> int:
    try:
        return run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted before the training began", file=sys.stderr)
        return 130


def run(arguments: list[str]) -> int:
    config, overrides = parse(arguments, DEFAULT_CONFIG)
    if config == "--list":
        print("\n".join(sorted(fpath.stem for fpath in CONFIGS_DPATH.glob("*.yaml"))))
        return 0
    if config == "--help":
        keys = (CONFIGS_DPATH / f"{DEFAULT_CONFIG}.yaml").read_text()
        print(f"{__doc__.strip()}\n\nkeys, with their values in {DEFAULT_CONFIG}:\n{keys}")
        return 0
    settings = read_settings(config, overrides)
    output = Path(settings.output_fpath)
    output.parent.mkdir(parents=True, exist_ok=True)  # asked before the training, not after it

    # Imported late: the library and torch take seconds, and mistakes above should answer at once.
    from data_generation.agent import save_agent
    from data_generation.agent_training import check_device, evaluate_players, train_agent

    check_device(settings.device)
    agent = train_agent(settings, keep=partial(save_agent, output))
    save_agent(output, agent)
    try:
        scores = evaluate_players(settings, agent)
    except KeyboardInterrupt:
        print(f"interrupted: saved to {output}, not measured")
        return 130
    agent.history["scores"] = [score._asdict() for score in scores]
    save_agent(output, agent)
    print(table(settings, scores))
    print(
        f"saved to {output}; record with python data_generation/generate.py --config=coinrun_ppo --agent_fpath={output}"
    )
    return 0


def read_settings(config: str, overrides: dict[str, str]) -> AgentSettings:
    """Compose a config and check it; every mistake is a ValueError of one line."""
    known = list(AgentSettings.__dataclass_fields__)
    return AgentSettings(**read_values(CONFIGS_DPATH, config, overrides, known, base=DEFAULT_CONFIG, other_names={}))


def table(settings: AgentSettings, scores: list) -> str:
    first = settings.evaluation_first_level
    lines = [
        f"{settings.evaluation_levels} held-out levels ({first} to {first + settings.evaluation_levels - 1}), "
        f"at most {settings.evaluation_steps} frames each, 95 % intervals over levels",
        f"{'':28}{'levels completed':>26}{'mean return':>24}{'frames':>9}",
    ]
    for score in scores:
        completed, returned = score.completed, score.returned
        lines.append(
            f"{score.name:28}{completed[0]:>10.1%} [{completed[1]:.1%}, {completed[2]:.1%}]"
            f"{returned[0]:>10.2f} [{returned[1]:.2f}, {returned[2]:.2f}]{score.num_frames:>9.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # how a cluster stops a job: as Ctrl-C does
    sys.exit(main(sys.argv[1:]))
