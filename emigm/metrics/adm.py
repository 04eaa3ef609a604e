"""Files of ADM (guided-diffusion): its reference statistics are read, samples for its evaluator are written. No torch.

Such a file is an `.npz` with images in `arr_0`, uint8 (n, height, width, 3); a reference has statistics of Inception's
features of more images beside them: `mu` (d,) and `sigma` (d, d), and `mu_s`, `sigma_s` of sFID's spatial features.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from emigm.config.errors import ConfigError, check
from emigm.data.samples import SampleSet
from emigm.io import write_atomically

REMEDY = (
    "evaluation.reference must name an .npz with mu and sigma, such as VIRTUAL_imagenet256_labeled.npz or "
    "VIRTUAL_imagenet512.npz from the list of reference batches in guided-diffusion's evaluations/README.md"
)


STATISTICS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
"""Features (`emigm.metrics.features`) => names of their mean and covariance."""


class AdmReference:
    """Stored statistics of real images, and the images stored beside them; these are read only when asked for.

    Args:
        path: the file; statistics may be of any float type.
        widths: numbers of the extractor's features, by name; statistics of others are not read.

    Raises:
        ConfigError: the file is missing or damaged, or does not hold what it needs to.
    """

    statistics: dict[str, tuple[np.ndarray, np.ndarray]]
    """Mean (d,) and covariance (d, d) by the name of the features, float64; those of "pool" always."""
    keys: list[str]
    images: int | None = None
    """n, images in `arr_0`; None: there are none."""

    def __init__(self, path: str | Path, widths: Mapping[str, int]):
        self.path = Path(path)
        check(self.path.is_file(), f"{self.path}: no such file ({REMEDY})")
        with self._naming_damage(), np.load(self.path) as f:
            self.keys = sorted(f.files)
            if missing := [name for name in STATISTICS["pool"] if name not in self.keys]:
                raise ConfigError(f"{self.path}: no {' and no '.join(missing)} among {self.keys} ({REMEDY})")
            known = {name: keys for name, keys in STATISTICS.items() if name in widths and set(keys) <= set(self.keys)}
            arrays = {name: {key: f[key] for key in keys} for name, keys in known.items()}
        for name, of_name in arrays.items():
            check_statistics(of_name, widths[name], self.path, "download the file again")
        self.statistics = {name: tuple(a.astype(np.float64) for a in of.values()) for name, of in arrays.items()}
        if "arr_0" not in self.keys:
            return
        with self._naming_damage():
            self._stream: IO[bytes] = zipfile.ZipFile(self.path).open("arr_0.npy")  # noqa: SIM115
            version = np.lib.format.read_magic(self._stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_column, dtype = read(self._stream)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or by_column:
            raise ConfigError(
                f"{self.path}: arr_0 is {dtype} of shape {shape}, expected uint8 (n, height, width, 3) ({REMEDY})"
            )
        self._first, self.images, self._shape = self._stream.tell(), shape[0], shape[1:]

    def pixels(self, start: int, stop: int) -> np.ndarray:
        """Images start .. stop - 1, uint8 (n, 3, height, width); cheapest in ascending order."""
        size = math.prod(self._shape)
        with self._naming_damage():
            self._stream.seek(self._first + start * size)
            images = np.frombuffer(self._stream.read((stop - start) * size), np.uint8)
            return np.ascontiguousarray(images.reshape(stop - start, *self._shape).transpose(0, 3, 1, 2))

    @contextmanager
    def _naming_damage(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as e:
            text = f"{self.path}: truncated, damaged or no .npz ({e}); download it again ({REMEDY})"
            raise ConfigError(text) from e


def check_statistics(statistics: Mapping[str, np.ndarray], features: int, path: Path, remedy: str) -> None:
    """Raise ConfigError, with the remedy, unless the two arrays (by their names in messages) are a mean (d,) and a
    covariance (d, d) of d = `features` floats: finite, symmetric, and of no negative variance."""
    for (name, array), shape in zip(statistics.items(), ((features,), (features, features)), strict=True):
        if array.shape != shape or array.dtype.kind != "f":
            raise ConfigError(
                f"{path}: {name} is {array.dtype} of shape {array.shape}, expected floats of shape {shape} for this "
                f"extractor; {remedy}"
            )
        check(np.isfinite(array).all(), f"{path}: {name} holds NaN or infinity; {remedy}")
    if array.diagonal().min() < 0 or np.abs(array - array.T).max() > 1e-3 * np.abs(array).max():
        raise ConfigError(f"{path}: {name} is no covariance (a negative variance, or not symmetric); {remedy}")


def export_npz(samples: Path, out: Path, images: int) -> None:
    """Write generated images, chunk by chunk, as ADM's evaluator reads them: `arr_0`, and their classes, `arr_1` (n,).

    Args:
        samples: folder of one training and one sampling seed.
        out: the .npz.
        images: how many there must be.

    Raises:
        ConfigError: the folder does not hold that many images, or they are not RGB of one size.
    """
    check(Path(out).suffix == ".npz", f"{out}: the name must end in .npz, as ADM's evaluator asks")
    source = SampleSet(samples, images)
    shape = source.chunk(0)[0].shape[1:]
    check(shape[0] == 3, f"{samples}: ADM's evaluator takes RGB images, not images of {shape[0]} channel(s)")

    def write(path: Path) -> None:
        labels = []
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as f:
                header = {"descr": "|u1", "fortran_order": False, "shape": (images, *shape[1:], 3)}
                np.lib.format.write_array_header_1_0(f, header)
                for pixels, classes in tqdm(source, total=len(source.ranges), desc=f"write {out}", unit="chunk"):
                    check(pixels.shape[1:] == shape, f"{samples}: images of several sizes; delete it and run dvc repro")
                    f.write(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)))
                    labels.append(classes)
            with archive.open("arr_1.npy", "w") as f:
                np.lib.format.write_array(f, np.concatenate(labels).astype("<i8"), version=(1, 0))

    write_atomically(out, write)
