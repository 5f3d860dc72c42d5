"""Started by tests as a process of its own: `python -m tests.training.workers.run ROOT KIND [key__sub=value …]`.

Trains a tiny model. `slow=SECONDS` waits in every step, so that a test can strike in the middle.
"""

import sys
import time
from pathlib import Path

from tests.training.workers.tiny import configure
from training.objectives import one_loss
from training.trainer import train


def main(root: str, kind: str, *words: str) -> None:
    settings = dict(word.split("=", 1) for word in words)
    pause = float(settings.pop("slow", 0))

    def objective(parts, clip, step):
        time.sleep(pause)
        return one_loss(parts, clip, step)

    train(configure(kind, Path(root), **settings), objective=objective)


if __name__ == "__main__":
    main(*sys.argv[1:])
