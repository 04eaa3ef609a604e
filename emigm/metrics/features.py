"""uint8 images -> features, on one device, in float32 always: torch-fidelity's Inception, or a small classifier.

The classifier is registered with torch-fidelity as an extractor, so that both kinds give what its metrics take.
"""

from __future__ import annotations

from functools import cached_property
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.config.paths import extractor_folder
from emigm.config.schema import ExtractorConfig
from emigm.io import sha256
from emigm.metrics.classifier import FEATURES, load_classifier, note_weights, noted_weights
from emigm.model.transfer import upload
from emigm.model.weights import check_finite, read_tensors
from emigm.paper.settings import INCEPTION_SHA256

INCEPTION_REMEDY = (
    "extractor.weights of kind: inception must name torch-fidelity's pt_inception-2015-12-05-6726825d.pth; its release "
    "v0.2.0 on GitHub (toshas/torch-fidelity) has it as weights-inception-2015-12-05-6726825d.pth"
)


class ClassifierExtractor(FeatureExtractorBase):
    """The classifier as torch-fidelity wants it; layers "64" and "logits"."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str = "", **_):
        super().__init__(name, features_list)
        self.model = load_classifier(Path(feature_extractor_weights_path))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        layers = dict(zip(self.get_provided_features_list(), self.model(pixels), strict=True))
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (str(FEATURES), "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else str(FEATURES)

    @staticmethod
    def can_be_compiled() -> bool:
        return False


register_feature_extractor("cnn", ClassifierExtractor)


class Features(NamedTuple):
    """What the metrics need to know of a set of images."""

    pool: Tensor  # (n, d)
    logits: Tensor  # (n, classes)
    clean: Tensor | None = None  # (n, d), pool behind clean-fid's resizing; None where nothing is resized


class Extractor:
    """Pixels, uint8 (n, c, h, w) => `Features`, float32 on the CPU.

    Args:
        network: torch-fidelity's extractor, with the pool features and the logits as its two layers.
        identity: what it is, for records.
        device: where it works.
        batch: images at once.
        workers: threads that resize images.
        clean: Inception: pass the images behind clean-fid's resizing, too.
    """

    def __init__(
        self,
        network: FeatureExtractorBase,
        identity: dict[str, Any],
        device: str,
        batch: int,
        workers: int,
        clean: bool,
    ):
        self.network, self.identity = network, identity
        self.device, self.batch, self.workers = torch.device(device), batch, workers
        self.inception = identity["kind"] == "inception"
        self.clean = self.inception and clean
        self.width = int(network.features_list[0])
        # cuDNN rounds the inputs of convolutions to TF32 unless told not to, which moves FID.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False

    @property
    def key(self) -> list[Any]:
        """What decides on the features of an image."""
        return [self.identity, self.clean]

    @property
    def classifies(self) -> bool:
        """Whether the logits are the benchmark's own classes (Inception's are in another order)."""
        return not self.inception

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> Features:
        side = None if self.inception else int(self.network.model.side)
        expected = (3,) if self.inception else (1, side, side)
        if pixels.dtype != np.uint8 or pixels.shape[1 : 1 + len(expected)] != expected:
            raise ConfigError(
                f"extractor kind: {self.identity['kind']} takes uint8 images of shape "
                f"{'3 x height x width' if self.inception else f'1 x {side} x {side}'}, not {pixels.dtype} of shape "
                f"{' x '.join(map(str, pixels.shape[1:]))}; set another extractor"
            )
        parts = []
        with torch.autocast(self.device.type, enabled=False):
            for start in range(0, len(pixels), self.batch):
                images = pixels[start : start + self.batch]
                found = self.network(upload(torch.from_numpy(images), self.device))
                found += (self.trunk(self._resized(images)),) if self.clean else ()
                parts.append([f.float().cpu() for f in found])
        return Features(*(torch.cat(layer) for layer in zip(*parts, strict=True)))

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
    inception = cfg.kind == "inception"
    path = noted_weights(Path(folder), INCEPTION_REMEDY if inception else "delete the folder and run dvc repro")
    layers, name = [str(FEATURES), "logits"], cfg.kind
    if inception:
        layers, name = ["2048", "logits_unbiased"], "inception-v3-compat"
        check_inception(path)
    options = {"feature_extractor_weights_path": str(path), "verbose": False}
    try:
        network = create_feature_extractor(name, layers, cuda=device != "cpu", **options)
    except RuntimeError as e:  # names or shapes of tensors
        reason = " ".join(str(e).split())[:150]
        raise ConfigError(f"{path}: not the weights of this extractor ({reason}) ({INCEPTION_REMEDY})") from e
    identity: dict[str, Any] = {"kind": cfg.kind, "sha256": sha256(path)}
    if inception:
        identity["published"] = identity["sha256"] == INCEPTION_SHA256
    return Extractor(network, identity, device, batch, workers, clean)


def extractor_of(benchmark: Benchmark, device: str) -> Extractor:
    """The extractor as a benchmark's stages use it: that of small images on one thread, so that its results do not
    depend on the number of cores."""
    if benchmark.extractor.kind == "cnn":
        torch.set_num_threads(1)
    run, folder = benchmark.run, extractor_folder(benchmark)
    clean = benchmark.evaluation.clean_fid
    return load_extractor(benchmark.extractor, folder, device, run.score_batch, run.workers, clean)


def check_inception(path: Path) -> None:
    """Raise ConfigError unless the file holds finite tensors and nothing else.

    torch-fidelity unpickles it without restrictions; what has passed here cannot run code there.
    """
    try:
        check_finite(read_tensors(path), path)
    except ConfigError as e:
        raise ConfigError(f"{e} ({INCEPTION_REMEDY})") from e


def write_source(folder: Path, weights: Path) -> dict[str, Any]:
    """Check Inception's weights and note in `folder` what they are; returns that."""
    check_inception(weights)
    return note_weights(folder, weights)
