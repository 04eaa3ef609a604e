"""Reference statistics of the training images, and the floors every FID is read against."""

from __future__ import annotations

import numpy as np
import torch

from emigm.autoencoder import load_autoencoder
from emigm.config import Benchmark
from emigm.images import load_images
from emigm.latents import LatentStore
from emigm.metrics import (
    Features,
    fid,
    inception_score,
    load_extractor,
    nearest_distance,
    reference_of,
    save_reference,
    scores,
)
from emigm.model import EMIGM
from emigm.records import mean_and_spread, write_record
from emigm.workspace import data_folder, run_stage


def make_reference(benchmark: Benchmark) -> None:
    torch.set_num_threads(1)
    folder = data_folder(benchmark)
    extract = load_extractor(benchmark.extractor, folder / "extractor.safetensors")
    train, _ = load_images(folder / "images" / "train.npz")
    holdout, holdout_labels = load_images(folder / "images" / "holdout.npz")
    real = extract(train)
    reference = reference_of(real)
    save_reference(folder / "reference.npz", reference)

    evaluation = benchmark.evaluation
    shuffled = [shuffled_scores(benchmark, extract, reference, seed) for seed in evaluation.seeds]
    # As many training images as held-out ones, so that a part of the floor that is mere sample size shows.
    bootstrap = [bootstrap_fid(real, reference, len(holdout), seed) for seed in evaluation.seeds]
    held_out = extract(holdout)
    results = {
        "floors": {
            "holdout": {
                **{
                    k: {"mean": v}
                    for k, v in scores(held_out, reference, holdout_labels, evaluation.kid_subset).items()
                },
                "images": len(holdout),
            },
            "class_shuffle": {
                **{k: mean_and_spread([s[k] for s in shuffled]) for k in shuffled[0]},
                "images": min(len(train), evaluation.images),
            },
            "train_bootstrap": {"fid": mean_and_spread(bootstrap), "images": len(holdout)},
        },
        "real": {"isc": inception_score(real), "images": len(train)},
        "nearest": {"holdout_to_train": nearest_distance(holdout, same_number(train, len(holdout)))},
    }
    write_record(benchmark, "reference", results, device="cpu", evaluation=evaluation)


def shuffled_scores(benchmark: Benchmark, extract, reference, seed: int) -> dict[str, float]:
    """Scores of the training images with every token drawn from another image of the class, position by
    position: what a model reaches that knows class and position but ignores context."""
    store = LatentStore(data_folder(benchmark) / "latents" / "train")
    autoencoder = load_autoencoder(benchmark.autoencoder)
    raw = torch.from_numpy(store.rows(np.arange(len(store))))
    unit = autoencoder.sample(raw[:, 0], torch.Generator().manual_seed(seed))
    with torch.device("meta"):
        model = EMIGM(benchmark.model_config(benchmark.sizes[0]))  # for its patches alone
    tokens = model.patchify(unit)
    rng = np.random.default_rng(seed)
    for c in np.unique(store.labels):
        members = np.flatnonzero(store.labels == c)
        for position in range(tokens.shape[1]):
            tokens[members, position] = tokens[rng.permutation(members), position]
    # As many as a model generates, since FID depends on the number.
    chosen = rng.permutation(len(tokens))[: benchmark.evaluation.images]
    pixels = autoencoder.decode(model.unpatchify(tokens[chosen])).numpy()
    return scores(extract(pixels), reference, store.labels[chosen], benchmark.evaluation.kid_subset)


def bootstrap_fid(real: Features, reference, n: int, seed: int) -> float:
    """FID of n training images drawn without replacement: how much of a floor is sample size."""
    chosen = np.random.default_rng(seed).choice(len(real.pool), n, replace=False)
    return fid(Features(real.pool[chosen], real.logits[chosen]), reference)


def same_number(train: np.ndarray, n: int) -> np.ndarray:
    """n training images: nearest distances to sets of different sizes cannot be compared."""
    return train[np.random.default_rng(0).choice(len(train), n, replace=False)]


if __name__ == "__main__":
    run_stage(make_reference)
