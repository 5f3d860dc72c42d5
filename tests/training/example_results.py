"""Evaluations as they lie on disk, small and frozen: a tokenizer, a guided and a latent world with every metric."""

import json
from pathlib import Path

import numpy as np

from training.evaluation import SCHEMA
from training.video import Sample, animation, write_dream_vs_real, write_gif

NAMES = ["left", "stay", "right"]
CURE = "no weights; get them with: python download_models.py --models --{}"
PROTOCOL = {"dataset": "noise", "split": "test", "levels": [10000, 10299], "seed": 0, "prompt": 1, "horizon": 3}
PROTOCOL |= {"method": "one_go", "steps": 1, "temperature": 0.0, "top_k": None, "inception": None, "weights": "runs/a"}


def interval(value, width=1.0):
    return [value - width, value + width]


def rows(metric, **values):
    """A metric of the model and of the rows beside it, falling by one a frame: `rows("psnr", model=24, ceiling=29)`."""
    found = {}
    for row, value in values.items():
        key = metric if row == "model" else f"{row}_{metric}"
        horizons = [value + 1, value, value - 1]
        found |= {key: value, f"{key}_ci95": interval(value), f"{key}_by_horizon": horizons}
        found |= {f"{key}_by_horizon_ci95": [interval(number) for number in horizons]} if metric == "psnr" else {}
    return found


def guided(**changes):
    """A world that says nothing of the metrics whose networks are missing."""
    results = dict.fromkeys(SCHEMA) | rows("psnr", model=21.0, copy_last=17.25, ceiling=28.75)
    results |= rows("ssim", model=0.6, copy_last=0.5, ceiling=0.8)
    results |= {"psnr_gain_h2_10": 3.1, "psnr_gain_h2_10_ci95": [2.6, 3.6], "num_clips": 6}
    results |= {
        "delta_psnr": 1.23,
        "delta_psnr_ci95": [0.95, 1.51],
        "action_usage": {"counts": [9, 0, 3], "perplexity": 1.75},
    }
    results |= {f"{name}_missing": CURE.format(name) for name in ("fid", "lpips", "fvd")}
    results |= {"action_following_missing": "the dataset has no train split to learn from; generate it"}
    results |= {"eval_seconds": 20.0, "clips_per_second": 10.0, "train_seconds": 240.0}
    protocol = PROTOCOL | {"actions": "recorded", "num_actions": 3, "action_names": NAMES}
    return results | {"protocol": protocol} | changes


def latent(**changes):
    """A world with every metric that there is."""
    results = guided(fid_missing=None, lpips_missing=None, fvd_missing=None, action_following_missing=None)
    results |= rows("psnr", model=22.0, copy_last=17.25, ceiling=28.75, random_actions=19.5)
    results |= rows("lpips", model=0.21, copy_last=0.35, ceiling=0.11, random_actions=0.28)
    results |= {
        "delta_psnr_by_horizon": [0.5, 1.25, 1.5],
        "codebook_counts": list(range(64)),
        "codebook_perplexity": 47.3,
    }
    results |= {"fid": 41.25, "fid_ci95": [39.0, 43.5], "fid_nearest": 44.5, "copy_last_fid": 18.5, "ceiling_fid": 22.5}
    results |= {"real_fid": 7.5, "fvd": 310.5, "copy_last_fvd": 420.5, "ceiling_fvd": 120.5}
    results |= {"action_following": 0.615, "action_following_ci95": [0.57, 0.66], "action_following_real": 0.835}
    results |= {"action_following_majority": 0.295, "action_error_ratio": 2.33, "action_error_ratio_ci95": [2.05, 2.75]}
    results |= {"action_usage": {"counts": [4, 5, 6, 3], "perplexity": 3.9}}
    results["latent_actions"] = {
        "counts": [[9, 0, 1], [0, 2, 3], [1, 1, 1], [0, 0, 0]],
        "action_entropy_bits": 1.53,
        "mutual_information_bits": 0.83,
        "mutual_information_bits_ci95": [0.71, 0.94],
        "mutual_information_bits_by_chance": 0.17,
        "nmi": 0.31,
        "nmi_by_chance": 0.065,
        "purity": 0.722,
        "purity_by_chance": 0.405,
        "real_of_latent": [0, 2, 1, None],
        "latent_of_real": [0, 1, 1],
        "mapping_accuracy": 0.625,
        "mapping_accuracy_ci95": [0.58, 0.67],
        "majority_accuracy": 0.375,
        "num_labelled": 12,
        "num_transitions": 18,
    }
    results["protocol"] = results["protocol"] | {"actions": "inferred from the true frames", "num_actions": 4}
    return results | changes


def tokenizer(**changes):
    results = dict.fromkeys(SCHEMA) | {"psnr": 29.1, "psnr_ci95": [28.5, 29.7], "ssim": 0.95, "num_clips": 6}
    results |= {"fid_missing": CURE.format("fid"), "codebook_counts": list(range(64)), "codebook_perplexity": 47.3}
    protocol = {key: PROTOCOL[key] for key in ("dataset", "split", "levels", "seed", "inception")}
    return results | {"protocol": protocol} | changes


def by_clip(shift=0.0, seed=0):
    """Values of 6 clips with 3 predicted frames; the copy row is that of the clips, whatever the model."""
    generator = np.random.default_rng(seed)
    clips = generator.normal(17, 3, (6, 3))
    return {"copy_last_psnr": clips, "psnr": clips + 4 + shift, "ssim": generator.uniform(0.5, 0.7, (6, 3))}


def latents(count=40):
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 4, count)
    vectors = generator.normal(size=(count, 5)) + 4 * np.eye(5)[codes]
    return {"vectors": vectors, "codes": codes, "actions": codes % 3}


def write(folder: Path, name: str, results: dict, arrays: dict | None = None) -> Path:
    """An evaluation's folder without pictures."""
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({name: results}))
    if arrays is not None:
        np.savez_compressed(folder / "by_clip.npz", **arrays)
    return folder


def frames(length=4, height=8, width=12):
    """Frame t has the brightness 40·t."""
    return np.broadcast_to((40 * np.arange(length, dtype=np.uint8))[:, None, None, None], (length, height, width, 3))


def samples(count=3):
    return [Sample(n, frames(), frames()[::-1], 1, ["left", "stay", "right"]) for n in range(count)]


def draw(folder: Path) -> None:
    """All the pictures that an evaluation leaves in `samples`."""
    write_dream_vs_real(folder, samples())
    write_dream_vs_real(folder, samples(), "every_action")
    for name in ("best", "median", "worst"):
        write_gif(folder / f"{name}.gif", animation([samples()[0]._replace(title=name, has_difference=True)]))
