"""Latent actions on a plane: t-SNE of the vectors that the latent action model infers, before they are quantised."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

MAX_POINTS = 2000
PERPLEXITY = 30.0  # neighbours that count, at most a third of the points
SEED = 0
FEWEST = 4  # points of which a picture says anything


def embed(vectors: np.ndarray) -> np.ndarray | None:
    """(N, D) -> (N, 2) by t-SNE (van der Maaten & Hinton, 2008); None where all are alike or there are too few."""
    if len(vectors) < FEWEST or not np.ptp(vectors, axis=0).any():
        return None
    # Imported here: other modes need not wait the second that it takes.
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    start = "pca" if vectors.shape[1] > 1 else "random"
    with threadpool_limits(1):  # sums in one order, so that the picture is the same again; and no waiting on busy cores
        return TSNE(perplexity=perplexity, init=start, random_state=SEED).fit_transform(vectors.astype(np.float32))


def write_latents(fpath: Path, latents: Mapping[str, np.ndarray]) -> None:
    """`latents.npz`: the first `MAX_POINTS` latent actions with their places on the plane as `embedding`.

    latents: vectors (N, D), codes (N,) and, where they are recorded, actions (N,). Empty for a model without them, and
    then an older file goes.
    """
    if not latents:
        fpath.unlink(missing_ok=True)
        return
    kept = {name: values[:MAX_POINTS] for name, values in latents.items()}
    points = embed(kept["vectors"])
    np.savez_compressed(fpath, **kept, **({} if points is None else {"embedding": points}))
