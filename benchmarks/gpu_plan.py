"""The stages of the GPU suite: the commands that a user would type, and the share of the minutes that each gets.

A full plan is for one GPU; the tiny one is a few of the same stages at sizes of seconds on a CPU.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Seconds of a training's share that go to its start, its last validation and its checkpoint.
AROUND_TRAINING = 25
SHORTEST_TRAINING = 10
CONFIGS = ("tokenizer", "genie_redux_guided", "genie_redux")


@dataclass(frozen=True)
class Stage:
    """One command, one process.

    kind: generate | test | train | eval | benchmark, which says where its result lies. seconds: its share of the time.
    product: the run folder of a training, the metrics.json of an evaluation.
    """

    name: str
    kind: str
    seconds: float
    words: tuple[str, ...]
    product: Path | None = None

    @property
    def command(self) -> str:
        """As a person would type it."""
        return shlex.join("python" if word == sys.executable else word for word in self.words)


def stages(work: Path, minutes: float, *, tiny: bool) -> list[Stage]:
    """The plan for a folder of datasets, checkpoints and evaluations, in the order in which it runs."""
    shares = sum(stage.seconds for stage in _Plan(work, 1.0).table(tiny))
    return _Plan(work, 60 * minutes / shares).table(tiny)


class _Plan:
    def __init__(self, work: Path, seconds: float):
        self.datasets, self.checkpoints = work / "datasets", work / "checkpoints"
        self.evaluation, self.seconds = work / "evaluation", seconds

    def table(self, tiny: bool) -> list[Stage]:
        return self.tiny() if tiny else self.full()

    def full(self) -> list[Stage]:
        small_batch = ("--train.batch_size=32", "--train.grad_accum=1", "--train.num_train_steps=100000")
        # The published rates reach their full size after 5,000 steps, which no training here comes to.
        published = (
            "--data=coinrun_plain", "--train.batch_size=16", "--train.grad_accum=1", "--train.log_every=10",
            "--train.validate_every=100000", "--train.num_validation_clips=64", "--train.keep_last=1",
            "--optimizer.warmup_steps=100",
        )  # fmt: skip
        step = ("--batch=auto", "--compile", "--profile", "--steps=10", f"--dataset={self.datasets / 'coinrun_plain'}")
        return [
            self.generate("data", 0.03, "--config=coinrun_quickstart", "--n_instances=2000"),
            self.generate("test_data", 0.02, "--config=coinrun_quickstart_test", "--n_instances=300"),
            self.test("gpu_tests", 0.08, "-m", "gpu", "tests"),
            self.train("tokenizer_small", 0.1, "tokenizer", *SMALL_TOKENIZER, *small_batch),
            self.train("genie_redux_guided_small", 0.1, "genie_redux_guided", *SMALL_WORLD, *small_batch),
            self.evaluate("tokenizer_small", 0.015, "tokenizer", "--eval=quickstart"),
            self.evaluate("genie_redux_guided_small", 0.02, "genie_redux_guided", "--eval=quickstart"),
            *(self.benchmark("train_step", config, 0.15, *step) for config in CONFIGS),
            self.train("tokenizer_published", 0.12, "tokenizer", *published),
            self.train("genie_redux_guided_published", 0.12, "genie_redux_guided", *published),
            self.evaluate("tokenizer_published", 0.02, "tokenizer", *PUBLISHED_EVALUATION),
            self.evaluate("genie_redux_guided_published", 0.025, "genie_redux_guided", *PUBLISHED_EVALUATION),
            *self.rollouts(0.14),
        ]

    def tiny(self) -> list[Stage]:
        few = (
            "--train.num_validation_clips=2", "--train.grad_accum=1",
            "--train.batch_size=1", "--train.num_frames=4", "--train.logger=none",
        )  # fmt: skip
        # Some: enough to be interrupted.
        two, some = ("--train.num_train_steps=2",), ("--train.num_train_steps=100",)
        clips = ("--eval=quickstart", "--eval.num_clips=2", "--eval.num_samples=1", "--eval.reader_steps=2")
        levels = ("--n_steps_max=30", "--n_workers=1")
        step = ("--small", "--steps=2", "--train.num_frames=4", "--train.num_workers=0")
        dataset = f"--dataset={self.datasets / 'coinrun_plain'}"
        return [
            self.generate("data", 0.1, "--config=coinrun_quickstart", "--n_instances=20", *levels),
            self.generate("test_data", 0.1, "--config=coinrun_quickstart_test", "--n_instances=4", *levels),
            self.test("gpu_tests", 0.15, "-m", "gpu", "tests/training/test_gpu.py"),
            self.train("tokenizer_small", 0.15, "tokenizer", *SMALL_TOKENIZER, *few, *some),
            self.train("genie_redux_guided_small", 0.15, "genie_redux_guided", *SMALL_WORLD, *few, *two),
            self.evaluate("genie_redux_guided_small", 0.15, "genie_redux_guided", *clips),
            self.benchmark("train_step", "genie_redux_guided", 0.2, *step, dataset),
        ]

    def generate(self, name: str, share: float, *words: str) -> Stage:
        return Stage(
            name, "generate", share * self.seconds, _run("--mode=generate", *words, f"--root_dpath={self.datasets}")
        )

    def test(self, name: str, share: float, *words: str) -> Stage:
        return Stage(name, "test", share * self.seconds, _run("--mode=test", "-rs", *words))

    def train(self, name: str, share: float, model: str, *words: str) -> Stage:
        seconds = share * self.seconds
        settings = (
            f"--train.dataset_root_dpath={self.datasets}", f"--train.save_root_dpath={self.checkpoints}",
            f"--train.max_train_seconds={max(SHORTEST_TRAINING, seconds - AROUND_TRAINING):.0f}",
            "--train.resume_ckpt=auto",
        )  # fmt: skip
        command = _run(*self.model(name, model), *words, *settings)
        return Stage(name, "train", seconds, command, self.checkpoints / model / size(name))

    def evaluate(self, trained: str, share: float, model: str, *words: str) -> Stage:
        """An evaluation of the training of that name."""
        settings = (
            f"--eval.dataset_root_dpath={self.datasets}", f"--train.save_root_dpath={self.checkpoints}",
            f"--eval.save_root_dpath={self.evaluation}",
        )  # fmt: skip
        command = _run(*self.model(trained, model), "--mode=eval", "--data=coinrun_plain", *words, *settings)
        product = self.evaluation / model / "coinrun_plain_test" / size(trained) / "metrics.json"
        return Stage(f"evaluate_{trained}", "eval", share * self.seconds, command, product)

    def model(self, name: str, model: str) -> tuple[str, ...]:
        words = (f"--config={model}.yaml", f"--name={size(name)}")
        return (
            words
            if model == "tokenizer"
            else (*words, f"--tokenizer_fpath={self.checkpoints / 'tokenizer' / size(name)}")
        )

    def benchmark(self, module: str, config: str, share: float, *words: str) -> Stage:
        command = (sys.executable, "-m", f"benchmarks.{module}", f"--config={config}", *words)
        return Stage(f"{module}_{config}", "benchmark", share * self.seconds, command)

    def rollouts(self, share: float) -> list[Stage]:
        """The speed of dreaming in the published size, for both prediction rules."""
        next_rule = ("--ways", "session", "graphs", "recomputed", "--samples=20", "--seconds=8")
        in_place = (
            "--dynamics.rule=in_place", "--inference_steps", "25", "8", "--batches", "1",
            "--ways", "graphs", "compiled", "session", "--samples=10", "--seconds=3",
        )  # fmt: skip
        return [
            Stage(name, "benchmark", part * share * self.seconds, (sys.executable, "-m", "benchmarks.rollout", *words))
            for name, part, words in (("rollout", 0.35, next_rule), ("rollout_in_place", 0.65, in_place))
        ]


SMALL_WORLD = ("--data=coinrun_plain", "--dynamics=small", "--optimizer=quickstart", "--train=quickstart")
SMALL_TOKENIZER = (
    "--data=coinrun_plain", "--tokenizer=small", "--quantizer=small", "--optimizer=quickstart", "--train=quickstart",
)  # fmt: skip
PUBLISHED_EVALUATION = ("--eval.num_clips=100", "--eval.batch_size=20", "--eval.num_samples=6")


def size(name: str) -> str:
    """small or published, the last word of a training's name, which names its run folder."""
    return name.rsplit("_", 1)[-1]


def _run(*words: str) -> tuple[str, ...]:
    return ("bash", "run.sh", *words)
