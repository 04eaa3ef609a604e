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
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from emigm.config.errors import ConfigError
from emigm.io import read_index

SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}
"""Of photos, in small letters."""
NAMED = 10
"""Files that an error message names; the others are counted."""


class DecodingError(ConfigError):
    """Images that do not decode.

    Args:
        failures: one line for each image: its name, and what is wrong with it.
        remedy: what the user can do.
    """

    def __init__(self, failures: Sequence[str], remedy: str):
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


def decode(name: str, file: Path | bytes) -> Image.Image | str:
    """The image as RGB, whatever its mode (ImageNet has grey and CMYK photos), or one line on why there is none."""
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as image:
            return image.convert("RGB")
    except UnidentifiedImageError:
        return f"{name} (not an image)"
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as e:
        return f"{name} ({getattr(e, 'strerror', None) or e})"


class Photos:
    """The photos that a manifest lists, decoded and cropped when they are asked for.

    Args:
        path: manifest, a JSON file with root, resolution, classes, files (relative to root) and labels.
        workers: threads that decode.

    Raises:
        ConfigError: the manifest is damaged, or the photos are no longer there.
    """

    def __init__(self, path: Path, workers: int):
        remedy = "run the prepare stage again (dvc repro)"
        manifest = read_index(path, remedy)
        try:
            self.root, self.resolution = Path(manifest["root"]), manifest["resolution"]
            self.files, labels = manifest["files"], manifest["labels"]
        except KeyError as e:
            raise ConfigError(f"{path}: has no {e}; {remedy}") from e
        if not self.root.is_dir():
            raise ConfigError(f"{self.root}: no such folder, but {path} lists its photos; run the prepare stage again")
        self.path = path
        self.labels = np.array(labels, dtype=np.int64)
        self.shape = (3, self.resolution, self.resolution)
        self.workers = workers

    def __len__(self) -> int:
        return len(self.files)

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """Crops of the given photos, uint8 (n, 3, resolution, resolution).

        Raises:
            DecodingError: names every one of these photos that does not decode.
        """
        with ThreadPoolExecutor(self.workers) as pool:
            crops = list(pool.map(self._crop, indices))
        if failures := [c for c in crops if isinstance(c, str)]:
            raise DecodingError(failures, "replace them by whole copies")
        return np.ascontiguousarray(np.stack(crops).transpose(0, 3, 1, 2))

    def _crop(self, index: int) -> np.ndarray | str:
        path = self.root / self.files[index]
        image = decode(str(path), path)
        return image if isinstance(image, str) else adm_crop(image, self.resolution)


def scan_photos(root: Path, classes: int, key: str, workers: int) -> dict[str, Any]:
    """Find the photos under `root`, one folder for each class, without opening them.

    Classes are numbered in the order of their folders' names, as ImageNet's usually are. Hidden files are ignored.

    Args:
        root: folder of the class folders.
        classes: how many there must be.
        key: configuration key that named `root`, for messages.
        workers: folders read at once.

    Returns:
        classes (names), files (relative to root, in order of class and name), labels.

    Raises:
        ConfigError: the folder is missing, has another layout or another number of classes, or holds anything else.
    """
    where = f"{key} = {root}"
    if not root.is_dir():
        raise ConfigError(f"{where}: no such folder; it must hold the photos, one folder for each class")
    folders, files = _entries(root)
    if not folders and any(_is_photo(f) for f in files):
        raise ConfigError(
            f"{where}: {len(files)} photos side by side and no class folders, as ImageNet's validation archive "
            "unpacks; move each into its class's folder (PyTorch's examples have a script: imagenet/extract_ILSVRC.sh)"
        )
    if len(folders) != classes:
        hint = f"; did you mean {root / 'train'}?" if "train" in folders else ""
        raise ConfigError(
            f"{where}: found {len(folders)} class folders ({_first(folders) or 'none'}), "
            f"expected benchmark.data.classes = {classes}{hint}"
        )
    if files:
        raise ConfigError(f"{where}: files beside the class folders ({_first(files)}); unpack or remove them")
    with ThreadPoolExecutor(workers) as pool:
        bar = tqdm(pool.map(lambda name: _entries(root / name), folders), total=classes, desc=key, unit="class")
        inside = list(bar)
    photos = {name: files for name, (_, files) in zip(folders, inside, strict=True)}
    strays = [f"{name}/{sub}/" for name, (subs, _) in zip(folders, inside, strict=True) for sub in subs]
    strays += [f"{name}/{file}" for name, files in photos.items() for file in files if not _is_photo(file)]
    if strays:
        raise ConfigError(
            f"{where}: {len(strays)} files or folders among the photos that are none ({_first(strays)}); remove them"
        )
    if empty := [name for name, files in photos.items() if not files]:
        raise ConfigError(f"{where}: {len(empty)} class folders without a photo ({_first(empty)}); fill them")
    return {
        "classes": folders,
        "files": [f"{name}/{file}" for name, files in photos.items() for file in files],
        "labels": [label for label, files in enumerate(photos.values()) for _ in files],
    }


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in `folder`, sorted."""
    with os.scandir(folder) as entries:  # knows folders without a look at each of a million files
        visible = [(e.name, e.is_dir()) for e in entries if not e.name.startswith(".")]
    return sorted(n for n, is_dir in visible if is_dir), sorted(n for n, is_dir in visible if not is_dir)


def _is_photo(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _first(names: Sequence[str], between: str = ", ") -> str:
    more = f"{between}and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return between.join(names[:NAMED]) + more
