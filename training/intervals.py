"""Confidence intervals over clips, by the bootstrap."""

import numpy as np

RESAMPLES = 2000
RESAMPLED_AT_ONCE = 10_000_000  # draws held in memory


def mean_and_interval(values: np.ndarray, seed: int = 0) -> dict:
    """{"mean", "ci95"} of one value per clip, (N,); None for no clips."""
    if not values.size:
        return {"mean": None, "ci95": None}
    low, high = bootstrap(values, seed=seed)
    return {"mean": float(values.mean()), "ci95": [float(low), float(high)]}


def bootstrap(
    values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the mean over clips (Efron, 1979): values (N, …) -> low and high, each (…).

    The same seed resamples the same clips: intervals of a difference by clip are paired.
    """
    generator = np.random.default_rng(seed)
    count = len(values)
    flat = values.reshape(count, -1)
    means = np.empty((resamples, flat.shape[1]))
    rows = max(1, RESAMPLED_AT_ONCE // count)
    for start in range(0, resamples, rows):
        # How often each clip is drawn says as much as the draws, and the means become one matrix product.
        weights = generator.multinomial(count, np.full(count, 1 / count), size=min(rows, resamples - start))
        means[start : start + rows] = weights @ flat / count
    tail = 50 * (1 - level)
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])
