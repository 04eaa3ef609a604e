"""Photos on disk, one folder for each class: found, decoded, and cropped as ADM does. No torch."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from emigm.config.errors import ConfigError, check
from emigm.config.paths import expand
from emigm.io import read_index

SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}  # of photos, in small letters
IGNORED = {"thumbs.db", "desktop.ini"}  # what desktops leave; hidden files and folders are ignored as well
NAMED = 10  # files that an error message names; the others are counted
SORT_VALIDATION = (
    "sort them: from the archives ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz in a folder DIR, "
    "`python -c \"from torchvision.datasets import ImageNet; ImageNet('DIR', 'val')\"` makes DIR/val; with Kaggle's "
    "LOC_val_solution.csv beside the photos, `tail -n +2 LOC_val_solution.csv | while IFS=', ' read -r photo class _; "
    'do mkdir -p "$class" && mv "$photo.JPEG" "$class/"; done` sorts them in their folder'
)


class DecodingError(ConfigError):
    """Images that do not decode: `failures` has a line for each, its name and what is wrong with it."""

    def __init__(self, failures: Sequence[str], remedy: str = "replace them by whole copies, or remove them"):
        self.failures = list(failures)
        super().__init__(f"{len(failures)} images do not decode: {_first(failures, '; ')}; {remedy}")


def adm_crop(image: Image.Image, resolution: int) -> np.ndarray:
    """The central square of an RGB image, as uint8 (resolution, resolution, 3).

    As ADM crops: halve with a box filter while the short side is at least twice the resolution, bring the short side
    to the resolution with a bicubic filter, cut.
    """
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    # One factor for both sides and Python's rounding decide the last pixel of the long side.
    factor = resolution / min(image.size)
    width, height = (round(side * factor) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    return np.asarray(image)[top : top + resolution, left : left + resolution]


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB; transparency is dropped.

    Pillow clips grey images of more than 8 bits where it should scale them. White is 65535 in its modes of 16 bits.
    Modes I and F do not say what it is: the least of 1 (F alone), 255 and 65535 that no pixel exceeds.
    """
    if image.mode == "La":  # Pillow converts it to nothing else
        image = image.convert("LA")
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        grey = np.asarray(image).astype(np.float64)
        tops = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
        white = next((top for top in tops if grey.max() <= top), None)
        if white is None or not grey.min() >= 0:
            raise ValueError(f"grey levels from {grey.min():g} to {grey.max():g}; save it with 8 or 16 bits")
        image = Image.fromarray(np.round(grey * (255 / white)).astype(np.uint8))
    return image.convert("RGB")


def decode(name: str, file: Path | bytes, upright: bool = False) -> Image.Image | str:
    """The image as RGB, whatever its mode (ImageNet has grey and CMYK photos), or one line on why there is none.
    `upright`: turned as its EXIF orientation says, which ADM leaves aside."""
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as image:
            return to_rgb(ImageOps.exif_transpose(image) if upright else image)
    except UnidentifiedImageError:
        return f"{name} (not an image)"
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as e:
        return f"{name} ({getattr(e, 'strerror', None) or e})"


def crop_photos(
    paths: Sequence[Path], resolution: int, workers: int, label: str | None = None, upright: bool = False
) -> np.ndarray:
    """Crops of photos, uint8 (n, 3, resolution, resolution), decoded by so many threads (`upright` as
    `decode` has it), under a bar of this label; DecodingError names every photo that does not decode."""

    def crop(path: Path) -> np.ndarray | str:
        image = decode(str(path), path, upright)
        return image if isinstance(image, str) else adm_crop(image, resolution)

    pixels, failures = np.empty((len(paths), 3, resolution, resolution), dtype=np.uint8), []
    with ThreadPoolExecutor(workers) as pool:
        crops = tqdm(pool.map(crop, paths), total=len(paths), desc=label, unit="photo", disable=label is None)
        for i, cropped in enumerate(crops):
            if isinstance(cropped, str):
                failures.append(cropped)
            else:
                pixels[i] = cropped.transpose(2, 0, 1)
    if failures:
        raise DecodingError(failures)
    return pixels


class Photos:
    """The photos that a manifest lists, decoded by so many `workers` and cropped when they are asked for.

    The manifest is a JSON file with root, resolution, classes, files (relative to root) and labels. ConfigError where
    it is damaged, or the photos are no longer there.
    """

    def __init__(self, path: Path, workers: int):
        remedy = "run the prepare stage again (dvc repro)"
        manifest = read_index(path, remedy)
        self.root, self.resolution, self.files = expand(manifest["root"]), manifest["resolution"], manifest["files"]
        check(self.root.is_dir(), f"{self.root}: no such folder, but {path} lists its photos; {remedy}")
        self.path, self.workers = path, workers
        self.labels = np.array(manifest["labels"], dtype=np.int64)
        self.shape = (3, self.resolution, self.resolution)

    def __len__(self) -> int:
        return len(self.files)

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """Crops of the given photos, uint8 (n, 3, resolution, resolution); raises DecodingError."""
        return crop_photos([self.root / self.files[i] for i in indices], self.resolution, self.workers)


def scan_photos(root: Path, classes: int, key: str, workers: int) -> dict[str, Any]:
    """classes (names), files (relative to root, in order of class and name) and labels of the photos under `root`, one
    folder for each class, without opening them.

    Classes are numbered in the order of `class_names`. Hidden files, what desktops leave, and files beside the class
    folders are ignored. `key` is the configuration key that named `root`. ConfigError where the folder is missing, has
    another layout or number of classes, or a class holds anything else.
    """
    where, root = f"{key} = {root}", expand(root)
    check(root.is_dir(), f"{where}: no such folder; it must hold the photos, one folder for each class")
    folders, beside = class_names(root), _entries(root)[1]
    if not folders and any(_is_photo(f) for f in beside):
        raise ConfigError(
            f"{where}: {len(beside)} photos side by side and no class folders; each goes into the folder of its class. "
            f"If these are ImageNet's validation photos as they unpack, {SORT_VALIDATION}"
        )
    if len(folders) != classes:
        hint = f"; did you mean {root / 'train'}?" if "train" in folders else ""
        raise ConfigError(
            f"{where}: found {len(folders)} class folders ({_first(folders) or 'none'}), "
            f"expected benchmark.data.classes = {classes}{hint}"
        )
    if beside:
        tqdm.write(f"note: {where}: files beside the class folders are ignored ({_first(beside)})")
    with ThreadPoolExecutor(workers) as pool:
        inside = pool.map(lambda name: _entries(root / name), folders)
        inside = dict(zip(folders, tqdm(inside, total=classes, desc=key, unit="class"), strict=True))
    strays = [f"{name}/{sub}/" for name, (subs, _) in inside.items() for sub in subs]
    strays += [f"{name}/{file}" for name, (_, files) in inside.items() for file in files if not _is_photo(file)]
    if strays:
        raise ConfigError(
            f"{where}: {len(strays)} files or folders among the photos that are none ({_first(strays)}); remove them"
        )
    if empty := [name for name, (_, files) in inside.items() if not files]:
        raise ConfigError(f"{where}: {len(empty)} class folders without a photo ({_first(empty)}); fill them")
    return {
        "classes": folders,
        "files": [f"{name}/{file}" for name, (_, files) in inside.items() for file in files],
        "labels": [label for label, (_, files) in enumerate(inside.values()) for _ in files],
    }


def scan_both(root: str, holdout_root: str, classes: int, workers: int) -> dict[str, dict[str, Any]]:
    """`scan_photos` of training ("train") and held-out photos ("holdout"), which must be of the same classes."""
    train = scan_photos(Path(root), classes, "benchmark.data.root", workers)
    holdout = scan_photos(Path(holdout_root), classes, "benchmark.data.holdout_root", workers)
    if differing := set(train["classes"]) ^ set(holdout["classes"]):
        raise ConfigError(
            f"benchmark.data.holdout_root = {holdout_root}: its class folders are not those of {root}; "
            f"{len(differing)} are in one only, such as {min(differing)}"
        )
    return {"train": train, "holdout": holdout}


def class_names(root: str | Path) -> list[str]:
    """Names of the class folders in order of the classes: as numbers where all are numbers, else as text."""
    names = _entries(expand(root))[0]
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in `folder`, sorted."""
    with os.scandir(folder) as entries:  # knows folders without a look at each of a million files
        seen = [(e.name, e.is_dir()) for e in entries if not e.name.startswith(".") and e.name.lower() not in IGNORED]
    return sorted(n for n, is_dir in seen if is_dir), sorted(n for n, is_dir in seen if not is_dir)


def _is_photo(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _first(names: Sequence[str], between: str = ", ") -> str:
    more = f"{between}and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return between.join(names[:NAMED]) + more
