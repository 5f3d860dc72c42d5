"""What latent actions have to do with the recorded ones: tables, and a map learned from few labelled transitions.

A latent world never sees recorded actions. Only here are they put beside the codes that its action model inferred, to
measure the codes and to make the world playable with real keys.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from data.episodes import write_json
from models import pretrained
from training.agreement import agreement, joint_counts
from training.intervals import mean_and_interval
from training.metrics import ClipValues

MAX_LABELLED = 200  # transitions whose recorded action the map may learn from
MAX_LATENTS = 2000  # transitions whose vectors are kept for pictures
FILE = "latent_actions.json"


class LatentActions:
    """Codes, vectors and recorded actions of every clip of an evaluation.

    num_clips: of the whole set, where it is known: no more clips keep their vectors than pictures need.
    """

    def __init__(self, num_codes: int, num_clips: int | None):
        self.num_codes = num_codes
        every = range(num_clips or 0)
        self._with_vectors = set(spread(num_clips, MAX_LATENTS)) if len(every) > MAX_LATENTS else None
        self.codes, self.actions, self.vectors = ClipValues(), ClipValues(), ClipValues()

    def update(self, numbers: Sequence[int], codes: Tensor, actions: Tensor | None, vectors: Tensor | None) -> None:
        """codes, actions: (B, T-1); vectors: (B, T-1, D)."""
        self.codes.add(numbers, codes)
        if actions is not None:
            self.actions.add(numbers, actions)
        if vectors is not None:
            rows = [row for row, number in enumerate(numbers) if self._keeps(number)]
            self.vectors.add([numbers[row] for row in rows], vectors[rows].float())

    def _keeps(self, number: int) -> bool:
        return self._with_vectors is None or number in self._with_vectors

    def gather(self) -> None:
        for values in (self.codes, self.actions, self.vectors):
            values.gather()

    def compute(self, num_actions: int | None = None) -> dict | None:
        """The results under `latent_actions`; None without recorded actions. num_actions: of the recorded ones."""
        if not self.actions.values.size:
            return None
        codes, actions = self.codes.values.astype(int), self.actions.values.astype(int)
        return tables(codes, actions, self.num_codes, num_actions or int(actions.max()) + 1)

    def picture(self) -> dict[str, np.ndarray]:
        """{"vectors" (N, D) float32, "codes" (N,), "actions" (N,)} of at most 2,000 transitions, "actions" only where
        they were recorded; empty where the world gives no vectors."""
        if not self.vectors.values.size:
            return {}
        numbers = self.vectors.numbers
        vectors = np.concatenate(self.vectors.values)
        chosen = spread(len(vectors), MAX_LATENTS)
        found = {"vectors": vectors[chosen].astype(np.float32), "codes": self.codes.of(numbers).ravel()[chosen]}
        if self.actions.values.size:
            found["actions"] = self.actions.of(numbers).ravel()[chosen]
        return {name: values if name == "vectors" else values.astype(np.int64) for name, values in found.items()}


def tables(codes: np.ndarray, actions: np.ndarray, num_codes: int, num_actions: int) -> dict:
    """How codes (N, T) go with recorded actions (N, T) of the same N clips.

    counts[code][action] are of all transitions, as are the measures of `agreement`. The map comes from at most 200
    labelled ones, those of a few whole clips spread over the set; its accuracy is that on all other clips, with an
    interval over them, beside the accuracy of always naming the action most frequent among the labelled.
    """
    counts = joint_counts(codes, actions, num_codes, num_actions)
    is_labelled = np.zeros(len(codes), bool)
    is_labelled[labelled_clips(*codes.shape)] = True
    labelled = joint_counts(
        codes[is_labelled, :MAX_LABELLED], actions[is_labelled, :MAX_LABELLED], num_codes, num_actions
    )
    results = {
        "counts": counts.tolist(),
        **agreement(codes, actions),
        "num_labelled": int(labelled.sum()),
        "num_transitions": int(counts.sum()),
    }
    if not labelled.sum():
        missing = ("real_of_latent", "latent_of_real", "mapping_accuracy", "mapping_accuracy_ci95", "majority_accuracy")
        return results | dict.fromkeys(missing)
    real_of_latent, latent_of_real = learn_map(labelled)
    right = (real_of_latent[codes[~is_labelled]] == actions[~is_labelled]).mean(axis=1)
    accuracy = mean_and_interval(right)
    return results | {
        "real_of_latent": real_of_latent.tolist(),
        "latent_of_real": latent_of_real.tolist(),
        "mapping_accuracy": accuracy["mean"],
        "mapping_accuracy_ci95": accuracy["ci95"],
        "majority_accuracy": float((actions[~is_labelled] == labelled.sum(0).argmax()).mean()),
    }


def labelled_clips(num_clips: int, num_transitions: int) -> list[int]:
    """Which of the clips may be labelled: as many as give 200 transitions, at most half of all, evenly spread."""
    return spread(num_clips, min(max(1, MAX_LABELLED // num_transitions), num_clips // 2))


def learn_map(labelled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(real action of each code, code of each real action) from counts (codes, actions) of labelled transitions.

    A code stands for its most frequent action, a code never seen for the most frequent one of all. A real key presses
    the code that most purely stands for its action, and never one that was not seen. To every code so many labels of
    the usual mixture are added as there are actions, so that few labels prove little, of rare actions, too.
    """
    is_seen, num_actions = labelled.sum(1) > 0, labelled.shape[1]
    real_of_latent = np.where(is_seen, labelled.argmax(1), labelled.sum(0).argmax())
    usual = labelled.sum(0) / max(1, labelled.sum())
    shares = (labelled + num_actions * usual) / (labelled.sum(1, keepdims=True) + num_actions)
    return real_of_latent, np.where(is_seen[:, None], shares, -1).argmax(0)


def spread(total: int, count: int) -> list[int]:
    """`count` numbers, or all, spread evenly over 0 … total - 1."""
    count = min(total, count)
    return [index * total // count for index in range(count)]


def write_map(folder: Path, model_fpath: str, table: dict, names: list[str]) -> None:
    """`latent_actions.json` in the evaluation's folder, and in the run folder of the weights if they lie in one.

    names: of the recorded actions. In the run folder, where players read it, names that people gave to latent actions
    stay, and so does what more transitions under the same weights have told. A run folder that cannot be written to is
    left alone. `play/latent_actions.py` says what the keys mean.
    """
    content = {
        "num_actions": len(table["real_of_latent"]),
        "real_names": names,
        **{key: table[key] for key in ("real_of_latent", "latent_of_real", "counts", "num_labelled")},
        "step": pretrained.read_header(model_fpath)["metadata"].get("step"),
    }
    write_json(folder / FILE, content)
    step_dpath = pretrained.resolve_fpath(model_fpath).parent
    if not step_dpath.name.startswith("step-"):
        return
    fpath = step_dpath.parent / FILE
    before = _read_map(fpath)
    is_alike = all(before.get(key) == content[key] for key in ("num_actions", "step", "real_names"))
    if is_alike and np.sum(before.get("counts") or 0) > np.sum(content["counts"]):
        return
    given = before.get("names")
    is_given = isinstance(given, list) and len(given) == content["num_actions"]
    try:
        write_json(fpath, content | {"names": given if is_given else None})
    except OSError as error:
        print(f"{step_dpath.parent} cannot be written to ({error.strerror}): {FILE} lies only in {folder}")


def _read_map(fpath: Path) -> dict:
    """What lies there; {} for nothing, or for what is no such file."""
    try:
        found = json.loads(fpath.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
