"""Random files in place of those that others released, in the same formats, so that a dry run needs nothing of theirs.

They lie in the folder `random/` (`emigm.config.benchmark.RANDOM`), where no benchmark takes them for the real ones.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from emigm.autoencoders.autoencoder import KL16_CONFIG, kl16_official_name
from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.io import write_atomically

STORED_IMAGES = 16
"""Images in the file of reference statistics; ADM's has 10,000."""
PHOTO = (320, 288)
"""Width and height of a photo: neither square nor of the benchmark's resolution, as photos are."""


def make_random(benchmark: Benchmark, paths: dict[str, Path]) -> None:
    """Make those of a dry run's random files (`Benchmark.random_files`) that are not there.

    Raises:
        ConfigError: an autoencoder of a kind that is not made here, or photos of another number of classes.
    """
    data, kind = benchmark.data, benchmark.autoencoder.kind
    if "autoencoder.weights" in paths and kind != "kl16":
        raise ConfigError(
            f"benchmark.autoencoder.weights = {paths['autoencoder.weights']}: random ones are made of kind: kl16, not "
            f"of {kind}; name real ones"
        )
    photos = partial(write_photos, classes=data.classes)
    statistics = partial(write_statistics, resolution=data.resolution)
    makers = {"autoencoder.weights": write_kl16, "extractor.weights": write_inception}
    makers |= {"evaluation.reference": statistics, "data.root": photos, "data.holdout_root": photos}
    for key, path in paths.items():
        if not path.exists():
            print(f"{path}: making it, random", flush=True)
            makers[key](path)
        elif path.is_dir() and (folders := sum(p.is_dir() for p in path.iterdir())) != data.classes:
            raise ConfigError(f"{path}: {folders} class folders, not {data.classes}; delete it and fetch again")


def write_kl16(path: Path) -> None:
    """KL-16 as MAR's kl16.ckpt has it."""
    from diffusers import AutoencoderKL  # takes seconds

    torch.manual_seed(0)
    state = AutoencoderKL(**KL16_CONFIG).state_dict()
    # Its file has attention's matrices as 1 x 1 convolutions.
    tensors = {kl16_official_name(k): v[..., None, None] if v.dim() == 2 else v for k, v in state.items()}
    write_atomically(path, lambda p: torch.save({"model": tensors}, p))


def write_inception(path: Path) -> None:
    """Inception as torch-fidelity's release has it, random but for features that neither vanish nor grow with depth."""

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict, strict=True, assign=False):
            """Its constructor cannot do without a file; this one is empty."""

    torch.manual_seed(0)
    with tempfile.NamedTemporaryFile() as empty:
        torch.save({}, empty.name)
        network = Untrained("random", ["2048"], empty.name)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    write_atomically(path, lambda p: torch.save(network.state_dict(), p))


def write_statistics(path: Path, resolution: int) -> None:
    """Reference statistics as ADM's files have them: mu (2048,), sigma (2048, 2048), mu_s (2023,), sigma_s (2023, 2023)
    of independent features of variance 1, and `STORED_IMAGES` square images, uint8 (n, resolution, resolution, 3)."""
    rng = np.random.default_rng(0)
    arrays = {"mu": rng.standard_normal(2048), "sigma": np.eye(2048)}
    arrays |= {"mu_s": rng.standard_normal(2023), "sigma_s": np.eye(2023)}
    arrays["arr_0"] = np.stack([smooth(rng, (resolution, resolution)) for _ in range(STORED_IMAGES)])

    def write(temporary: Path) -> None:
        with temporary.open("wb") as f:
            np.savez(f, **arrays)

    write_atomically(path, write)


def write_photos(folder: Path, classes: int) -> None:
    """One photo in a folder for each class, as ImageNet's training photos lie; all or none."""
    begun = folder.with_name(f".{folder.name}.begun")
    shutil.rmtree(begun, ignore_errors=True)
    for label in range(classes):
        photo = begun / f"class{label:04}" / "0.jpeg"
        photo.parent.mkdir(parents=True)
        Image.fromarray(smooth(np.random.default_rng(label), PHOTO)).save(photo, quality=90)
    begun.rename(folder)


def smooth(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A smooth random image, uint8 (height, width, 3), of size (width, height)."""
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return np.asarray(small.resize(size, Image.Resampling.BICUBIC))
