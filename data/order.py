"""The order of a run's clips without any state: numbers that are well mixed, and a shuffle that is a formula."""

import math

import numpy as np

FEISTEL_ROUNDS = 3  # of two shifts each


def hash64(seed: int, numbers: np.ndarray) -> np.ndarray:
    """A well-mixed int64 >= 0 for each (seed, number); numbers are uint64 (SplitMix64, Steele et al., 2014)."""
    key = _mix(np.array([seed], dtype=np.int64).view(np.uint64))
    return (_mix(numbers + key) >> np.uint64(1)).astype(np.int64)


def shuffled(numbers: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Which of `size` windows each clip number of a run shows: clips 0…size-1 all of them once, then again, …

    A Feistel network keyed by seed and epoch permutes the cells of a rectangle of just over `size` cells; what falls
    outside goes round again until it is inside (cycle walking; Black & Rogaway, "Ciphers with arbitrary finite
    domains", 2002). O(1) memory, any clip without its predecessors.
    """
    numbers = numbers.astype(np.uint64)
    epochs, places = numbers // np.uint64(size), numbers % np.uint64(size)
    columns = math.isqrt(size - 1) + 1
    rows = -(-size // columns)
    keys = _mix(epochs + _mix(hash64(seed, np.zeros(1, np.uint64)).view(np.uint64)))
    places = _feistel(places, keys, np.uint64(rows), np.uint64(columns))
    while (outside := places >= size).any():
        places[outside] = _feistel(places[outside], keys[outside], np.uint64(rows), np.uint64(columns))
    return places.astype(np.int64)


def _feistel(places: np.ndarray, keys: np.ndarray, rows: np.uint64, columns: np.uint64) -> np.ndarray:
    """A permutation of the places row * columns + column: each round shifts one coordinate by a hash of the other."""
    row, column = places // columns, places % columns
    for number in range(0, 2 * FEISTEL_ROUNDS, 2):
        row = (row + _mix(column + keys + np.uint64(number << 56)) % rows) % rows
        column = (column + _mix(row + keys + np.uint64(number + 1 << 56)) % columns) % columns
    return row * columns + column


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function on uint64 arrays, wrapping around."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
