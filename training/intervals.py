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


def by_horizon(values: np.ndarray) -> list[list[float]] | None:
    """[[low, high] × T] of (N, T), one value per clip and frame; None for no clips."""
    return np.stack(bootstrap(values), axis=1).tolist() if values.size else None


def ratio_interval(over: np.ndarray, under: np.ndarray) -> list[float] | None:
    """[low, high] of mean(over) / mean(under), (N,) each, a clip always with both; None where a resample has none."""
    if not over.size:
        return None
    means = resampled_means(np.stack([over, under], axis=1))
    return percentiles(means[:, 0] / means[:, 1]).tolist() if means[:, 1].all() else None


def bootstrap(
    values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the mean over clips (Efron, 1979): values (N, …) -> low and high, each (…).

    The same seed resamples the same clips: intervals of a difference by clip are paired.
    """
    low, high = percentiles(resampled_means(values, seed=seed, resamples=resamples), level)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def percentiles(resampled: np.ndarray, level: float = 0.95) -> np.ndarray:
    """(R, …) -> (2, …): what the middle `level` of the resampled values lies between."""
    tail = 50 * (1 - level)
    return np.percentile(resampled, [tail, 100 - tail], axis=0)


def resampled_means(values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """(N, …) -> (R, product of …): means over N clips drawn from the N, each of them any number of times."""
    generator = np.random.default_rng(seed)
    count = len(values)
    flat = values.reshape(count, -1)
    means = np.empty((resamples, flat.shape[1]))
    rows = max(1, RESAMPLED_AT_ONCE // count)
    for start in range(0, resamples, rows):
        # How often each clip is drawn says as much as the draws, and the means become one matrix product.
        weights = generator.multinomial(count, np.full(count, 1 / count), size=min(rows, resamples - start))
        means[start : start + rows] = weights @ flat / count
    return means
