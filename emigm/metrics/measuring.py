"""Images measured part by part, shared by all processes of a stage and kept on the disk until it is done; and the
scores of generated images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.config.paths import PARTS, data_folder, extractor_folder, images_folder
from emigm.data.images import open_images
from emigm.data.samples import SampleSet
from emigm.distributed import World
from emigm.io import Parts, checksums, fingerprint, read_arrays, write_arrays
from emigm.launching import Progress
from emigm.metrics.classifier import classification_accuracy_score
from emigm.metrics.features import Features, extractor_of
from emigm.metrics.scores import load_reference, nearest, same_number, scores


class Images(NamedTuple):
    """Images that are read and measured together."""

    key: str
    """Names the images and all that is measured on them; what was measured under the same name is taken."""
    number: int
    read: Callable[[], np.ndarray]
    """Pixels, uint8 (number, c, h, w)."""


def measure_images(
    images: Sequence[Images], measure: Callable[[np.ndarray], Features], state: Path, world: World, label: str
) -> None:
    """Measure this process's share into `state`, one file for each of `images`; what is whole there is kept.

    Returns when all processes are done. A file depends on its images alone, so the number of processes changes nothing.
    """
    parts, mine = _parts(images, state), world.share(len(images))
    missing = parts.missing(mine)
    options = {"unit": "image", "desc": label, "disable": not world.is_main, "mininterval": 1.0}
    done = sum(images[i].number for i in mine) - sum(images[i].number for i in missing)
    with tqdm(total=done + sum(images[i].number for i in missing), initial=done, **options) as bar:
        for i in missing:
            arrays = {name: tensor.numpy() for name, tensor in measure(images[i].read()).items()}
            parts.add(parts.names[i], partial(write_arrays, **arrays))
            bar.update(images[i].number)
    world.barrier()


def measured(images: Sequence[Images], state: Path) -> Features:
    """What `measure_images` measured, put together in the order of the images; raises RunError where some is not."""
    parts = _parts(images, state)
    parts.notes()
    arrays = [read_arrays(parts.files / name, (), "delete it and type the same command again") for name in parts.names]
    return {name: torch.from_numpy(np.concatenate([a[name] for a in arrays])) for name in arrays[0]}


def _parts(images: Sequence[Images], state: Path) -> Parts:
    return Parts(state, [f"{i.key}.npz" for i in images])


class Scorer:
    """Measures and scores the generated images of a benchmark.

    Args:
        benchmark: the settings.
        device: where to compute features.
        neighbours: also measure distances to the nearest real images, in pixels; never of photos, where they say
            nothing.

    Raises:
        ConfigError: reference or extractor is missing or damaged, or the reference is of another extractor or images.
    """

    def __init__(self, benchmark: Benchmark, device: str, neighbours: bool = True):
        path, folder = data_folder(benchmark) / "reference.npz", images_folder(benchmark)
        self.reference, self.extract = load_reference(path), extractor_of(benchmark, device)
        self.known: dict[str, np.ndarray] = {}
        """Equally many training and held-out images."""
        images: list[Path] = []
        if neighbours and benchmark.data.dataset != "imagenet":
            train, holdout = (source.pixels(range(len(source))) for source in (open_images(folder, p) for p in PARTS))
            self.known = {"nearest_train": same_number(train, holdout), "nearest_holdout": holdout}
            images = [folder / f"{part}.npz" for part in PARTS]
        self.inputs = checksums(extractor_folder(benchmark), path, *images)
        """File => checksum of what scores depend on beside the generated images."""
        self.key = [*self.extract.key, *(self.inputs[p.as_posix()] for p in images)]
        for file, checksum in self.reference.facts["inputs"].items():
            if self.inputs.get(file, checksum) != checksum:
                raise ConfigError(f"{path}: was made with another {file} (sha256 {checksum}); run dvc repro")

    def measure(self, pixels: np.ndarray) -> Features:
        """Features, and the distance of each image to its nearest among the `known` ones (n,)."""
        near = {name: torch.from_numpy(nearest(pixels, others)[0][:, 0]) for name, others in self.known.items()}
        return self.extract(pixels) | near

    def measure_all(self, runs: Sequence[SampleSet], state: Path, world: World, label: str) -> None:
        """`measure_images` of the images of several runs."""
        measure_images([images for run in runs for images in self._images(run)], self.measure, state, world, label)

    def score_run(self, samples: SampleSet, state: Path) -> tuple[Features, dict[str, Any]]:
        """Features and scores of one run, given what `measure_all` measured."""
        features = measured(self._images(samples), state)
        return features, self.score(features, samples.all()[1] if self.extract.classifies else None)

    def score(self, features: Features, labels: np.ndarray | None) -> dict[str, Any]:
        """Every metric of one run, given what was measured and its classes (n,), which nobody needs (None) whose
        extractor does not classify images; None: not measured."""
        near = {
            name: float(features[name].numpy().mean(dtype=np.float64)) if name in features else None
            for name in ("nearest_train", "nearest_holdout")
        }
        return scores(features, self.reference, labels) | near

    def _images(self, samples: SampleSet) -> list[Images]:
        return [
            Images(fingerprint(samples.checksum(i), self.key), stop - start, lambda i=i: samples.chunk(i)[0])
            for i, (start, stop) in enumerate(samples.ranges)
        ]


def cas_of(benchmark: Benchmark, runs: Sequence[SampleSet], progress: Progress) -> float:
    """Classification accuracy score of the images of several runs together, with the classes they were generated for,
    on the held-out images."""
    settings, source = benchmark.extractor.training, open_images(images_folder(benchmark), "holdout")
    images = tuple(np.concatenate(parts) for parts in zip(*(run.all() for run in runs), strict=True))
    real, steps = (source.pixels(range(len(source))), source.labels), benchmark.evaluation.cas_steps
    value = classification_accuracy_score(images, real, settings, steps)
    progress(steps)
    return value
