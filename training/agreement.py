"""How much two labels say of each other: mutual information, NMI and purity of a joint table, with floor and interval.

All three are taken from the shares that were counted, and are too large for it: labels that have nothing to do with
each other share about (K-1)·(A-1) / (2·N·ln 2) bits in N transitions, and no table is less pure than the share of the
most frequent action. So beside each stands its value *by chance*: that of codes put beside the actions of other clips.
"""

from collections.abc import Callable

import numpy as np

from training.intervals import percentiles, resampled_means

MAX_SHIFTS = 20  # other clips that chance is measured with


def mutual_information(counts: np.ndarray) -> np.ndarray:
    """I(code; action) in bits, of tables (…, codes, actions) -> (…)."""
    return _entropy(counts.sum(-1)) + _entropy(counts.sum(-2)) - _entropy(counts.reshape(*counts.shape[:-2], -1))


def normalised_mutual_information(counts: np.ndarray) -> np.ndarray:
    """I by the mean of both entropies: 0 unrelated, 1 one-to-one; NaN where there is but one code and one action."""
    mean = (_entropy(counts.sum(-1)) + _entropy(counts.sum(-2))) / 2
    return np.divide(mutual_information(counts), mean, out=np.full_like(mean, np.nan), where=mean > 0)


def purity(counts: np.ndarray) -> np.ndarray:
    """The share of transitions whose action is the most frequent one of their code."""
    return counts.max(-1).sum(-1) / counts.sum((-2, -1))


def action_entropy(counts: np.ndarray) -> float:
    """Bits that an action holds, of which a code can tell no more than all."""
    return float(_entropy(counts.sum(-2)))


MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mutual_information_bits": mutual_information,
    "nmi": normalised_mutual_information,
    "purity": purity,
}


def joint_counts(codes: np.ndarray, actions: np.ndarray, num_codes: int, num_actions: int) -> np.ndarray:
    """(num_codes, num_actions): how often a code and an action come together."""
    pairs = codes.ravel() * num_actions + actions.ravel()
    return np.bincount(pairs, minlength=num_codes * num_actions).reshape(num_codes, num_actions)


def agreement(codes: np.ndarray, actions: np.ndarray) -> dict:
    """Every measure of codes (N, T) against actions (N, T) of N clips, None where it is undefined, with
    `…_ci95`, over clips and around the value itself, since a resample is as much too large again, and
    `…_by_chance`, the mean over shifts of the codes by whole clips; None for a single clip. And `action_entropy_bits`.
    """
    # What never comes changes none of the measures.
    codes, actions = (np.unique(labels, return_inverse=True)[1].reshape(labels.shape) for labels in (codes, actions))
    size = int(codes.max()) + 1, int(actions.max()) + 1
    counts = joint_counts(codes, actions, *size)
    by_clip = np.stack([joint_counts(*clip, *size) for clip in zip(codes, actions, strict=True)])
    resampled = resampled_means(by_clip).reshape(-1, *size)
    chance = by_chance(codes, actions, size)
    entropy = action_entropy(counts)
    results = {"action_entropy_bits": entropy}
    for name, measure in MEASURES.items():
        value = float(measure(counts))
        is_defined = bool(np.isfinite(value))
        results[name] = value if is_defined else None
        results[f"{name}_ci95"] = None
        if is_defined and len(codes) > 1:
            largest = entropy if measure is mutual_information else 1.0
            results[f"{name}_ci95"] = around(value, measure(resampled), largest)
        results[f"{name}_by_chance"] = float(measure(chance).mean()) if is_defined and len(chance) else None
    return results


def by_chance(codes: np.ndarray, actions: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(shifts, codes, actions): tables of the codes of some clips beside the actions of others.

    Clips stay whole, so that what follows each other in a clip still does.
    """
    count = len(codes)
    shifts = np.unique(np.linspace(1, count - 1, min(MAX_SHIFTS, count - 1)).astype(int)) if count > 1 else []
    tables = [joint_counts(np.roll(codes, shift, axis=0), actions, *size) for shift in shifts]
    return np.stack(tables) if tables else np.empty((0, *size))


def around(value: float, resampled: np.ndarray, largest: float) -> list[float] | None:
    """[low, high]: the spread of resampled values, moved to the value, which lies between 0 and `largest`."""
    if not np.isfinite(resampled).all():
        return None
    low, high = percentiles(resampled - resampled.mean())
    return [max(0.0, value + float(low)), min(largest, value + float(high))]


def _entropy(counts: np.ndarray) -> np.ndarray:
    """In bits, along the last axis."""
    shares = counts / counts.sum(-1, keepdims=True)
    return -(shares * np.log2(shares, out=np.zeros_like(shares), where=shares > 0)).sum(-1)
