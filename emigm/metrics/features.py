"""uint8 images -> features, on one device, in float32 always: torch-fidelity's Inception, or small classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_fidelity.utils import create_feature_extractor

from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.config.paths import extractor_folder
from emigm.config.schema import ExtractorConfig
from emigm.metrics.classifier import FEATURES, load_classifier, note_weights, noted_weights, weights_file
from emigm.model.weights import check_finite, read_tensors, upload
from emigm.paper.settings import INCEPTION_SHA256

INCEPTION_REMEDY = (
    "extractor.weights of kind: inception must name torch-fidelity's pt_inception-2015-12-05-6726825d.pth; its release "
    "v0.2.0 on GitHub (toshas/torch-fidelity) has it as weights-inception-2015-12-05-6726825d.pth"
)


SPATIAL_CHANNELS, SPATIAL = 7, 17 * 17 * 7
"""sFID's features: the first channels of Inception's convolution `mixed_6/conv`, at all its 17 x 17 positions."""
Features = dict[str, Tensor]
"""Of images, a row each: "pool" (n, d) and "logits" (n, classes). Inception also has "spatial" (n, 2023), for sFID,
and "clean" (n, 2048), pool behind clean-fid's resizing; the classifier has "seed<k>" (n, d), pool of the one that was
trained from seed k, for every seed (the first of them is pool itself)."""


class Extractor:
    """Pixels, uint8 (n, c, h, w) => `Features`, float32 on the CPU.

    Args:
        networks: torch-fidelity's Inception alone, or classifiers by seed, the first of which is the ruler of all
            metrics.
        identity: what it is, for records.
        device: where it works.
        batch: images at once.
        workers: threads that resize images.
        clean: Inception: pass the images behind clean-fid's resizing, too.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        identity: dict[str, Any],
        device: str,
        batch: int,
        workers: int,
        clean: bool,
    ):
        self.networks, self.identity = list(networks.values()), identity
        self.network = self.networks[0]
        self.device, self.batch, self.workers = torch.device(device), batch, workers
        self.inception = identity["kind"] == "inception"
        self.widths = {"pool": 2048, "spatial": SPATIAL} if self.inception else {"pool": FEATURES}
        """Numbers of features, by name, of which there may be statistics of others."""
        own = ["spatial", *(["clean"] if clean else [])] if self.inception else [f"seed{seed}" for seed in networks]
        self.names = ["pool", "logits", *own]
        if self.inception:
            self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)
        # cuDNN rounds the inputs of convolutions to TF32 unless told not to, which moves FID.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False

    @property
    def key(self) -> list[Any]:
        """What decides on the features of an image."""
        return [self.identity, self.names]

    @property
    def classifies(self) -> bool:
        """Whether the logits are the benchmark's own classes (Inception's are in another order)."""
        return not self.inception

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> Features:
        expected = (3,) if self.inception else self.network.shape
        if pixels.dtype != np.uint8 or pixels.shape[1 : 1 + len(expected)] != expected:
            shape = "3 x height x width" if self.inception else " x ".join(map(str, expected))
            raise ConfigError(
                f"extractor kind: {self.identity['kind']} takes uint8 images of shape {shape}, not {pixels.dtype} of "
                f"shape {' x '.join(map(str, pixels.shape[1:]))}; set another extractor"
            )
        parts = []
        with torch.autocast(self.device.type, enabled=False):
            for start in range(0, len(pixels), self.batch):
                features = self._of_batch(pixels[start : start + self.batch])
                parts.append([f.float().cpu() for f in features])
        return {name: torch.cat(f) for name, f in zip(self.names, zip(*parts, strict=True), strict=True)}

    def _of_batch(self, pixels: np.ndarray) -> list[Tensor]:
        """Features in the order of `names`."""
        images = upload(torch.from_numpy(pixels), self.device)
        if not self.inception:
            results = [network(images) for network in self.networks]
            return [*results[0], *(pool for pool, _ in results)]
        features = [*self.network(images), self._spatial]
        return [*features, self.trunk(self._resized(pixels))] if "clean" in self.names else features

    def _keep_spatial(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Keep what ADM takes sFID of, in its order (position, then channel), after the ReLU: (B, 2023)."""
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    @cached_property
    def trunk(self) -> nn.Module:
        """Inception without torch-fidelity's resizing: images (B, 3, 299, 299) in -1..1 => (B, 2048)."""
        return nn.Sequential(*(m for name, m in self.network.named_children() if name != "fc"), nn.Flatten())

    def _resized(self, images: np.ndarray) -> Tensor:
        """As clean-fid prepares images (bicubic with antialiasing, not rounded): (B, 3, 299, 299) in -1..1."""
        from cleanfid.resize import build_resizer  # only Inception needs it

        with ThreadPool(self.workers) as pool:
            resized = pool.map(build_resizer("clean"), images.transpose(0, 2, 3, 1))
        return (upload(torch.from_numpy(np.stack(resized)), self.device).permute(0, 3, 1, 2) - 128) / 128


def load_extractor(
    cfg: ExtractorConfig, folder: Path, device: str = "cpu", batch: int = 64, workers: int = 1, clean: bool = True
) -> Extractor:
    """The extractor that the extractor stage left in `folder`.

    Raises:
        ConfigError: the stage has not run, or the weights are missing, damaged, or not those it saw.
    """
    if cfg.kind == "cnn":
        noted = noted_weights(Path(folder), "delete the folder and run dvc repro")
        files = {str(seed): weights_file(Path(folder), seed) for seed in cfg.training.seeds}
        if list(noted) != list(files.values()):
            raise ConfigError(f"{folder}: its classifiers are not those of extractor.training.seeds; run dvc repro")
        networks = {seed: load_classifier(file).to(device) for seed, file in files.items()}
        identity: dict[str, Any] = {"kind": "cnn", "sha256": dict(zip(files, noted.values(), strict=True))}
        return Extractor(networks, identity, device, batch, workers, clean)
    [(path, checksum)] = noted_weights(Path(folder), INCEPTION_REMEDY).items()
    check_inception(path)
    options = {"feature_extractor_weights_path": str(path), "verbose": False, "cuda": device != "cpu"}
    try:
        network = create_feature_extractor("inception-v3-compat", ["2048", "logits_unbiased"], **options)
    except RuntimeError as e:  # names or shapes of tensors
        reason = " ".join(str(e).split())[:150]
        raise ConfigError(f"{path}: not the weights of this extractor ({reason}) ({INCEPTION_REMEDY})") from e
    identity = {"kind": cfg.kind, "sha256": checksum, "published": checksum == INCEPTION_SHA256}
    return Extractor({"": network}, identity, device, batch, workers, clean)


def extractor_of(benchmark: Benchmark, device: str) -> Extractor:
    """The extractor as a benchmark's stages use it: that of small images on one thread, so that its results do not
    depend on the number of cores."""
    if benchmark.extractor.kind == "cnn":
        torch.set_num_threads(1)
    how = (device, benchmark.run.score_batch, benchmark.run.workers, benchmark.evaluation.clean_fid)
    return load_extractor(benchmark.extractor, extractor_folder(benchmark), *how)


def check_inception(path: Path) -> None:
    """Raise ConfigError unless the file holds finite tensors and nothing else: torch-fidelity unpickles it without
    restrictions, and what has passed here cannot run code there."""
    try:
        check_finite(read_tensors(path), path)
    except ConfigError as e:
        raise ConfigError(f"{e} ({INCEPTION_REMEDY})") from e


def write_source(folder: Path, weights: Path) -> dict[str, Any]:
    """Check Inception's weights and note in `folder` what they are; returns that."""
    check_inception(weights)
    return note_weights(folder, weights)[0]
