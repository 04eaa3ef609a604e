"""The files that others released: where they lie, where they go, and the checksums they are known by. No torch.

A checksum is *published* where its author or the host gives one, and *recorded* where `emigm fetch` saw the file first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.config.paths import expand
from emigm.config.schema import ReleasedConfig
from emigm.io import read_json
from emigm.paper.settings import INCEPTION_SHA256


class HubFile(NamedTuple):
    """A file of a model repository on the Hugging Face Hub, which publishes the SHA-256 of large files."""

    repository: str
    name: str
    revision: str | None = None
    """Branch, tag or commit; None: the repository's main branch."""

    def __str__(self) -> str:
        return f"https://huggingface.co/{self.repository}"


_LONG = {"xs": "xsmall", "s": "small", "b": "base", "l": "large", "h": "huge"}
PUBLISHED = {"inception": INCEPTION_SHA256}
"""SHA-256 by kind."""
MIRRORS: dict[str, tuple[str | HubFile, ...]] = {
    "kl16": (
        # MAR's own link first (github.com/LTH14/mar, util/download.py).
        "https://www.dropbox.com/scl/fi/hhmuvaiacrarfg28qxhwz/kl16.ckpt?rlkey=l44xipsezc8atcffdp4q7mwmh&dl=1",
        HubFile("xwen99/mar-vae-kl16", "kl16.ckpt"),
    ),
    "dcae": (HubFile("mit-han-lab/dc-ae-f32c32-in-1.0", "model.safetensors"),),
    "inception": (
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    ),
}
"""By kind of autoencoder or extractor, in the order in which they are tried."""
REFERENCES = {256: "VIRTUAL_imagenet256_labeled.npz", 512: "VIRTUAL_imagenet512.npz"}
"""ADM's statistics of ImageNet's training images, by resolution."""
REFERENCE_HOST = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"
FETCHED = Path("weights") / "fetched.json"
"""What `emigm fetch` got: path -> SHA-256, bytes and where from."""


class ReleasedFile(NamedTuple):
    """A file of others that a benchmark needs."""

    what: str
    path: Path
    mirrors: tuple[str | HubFile, ...] = ()
    """Where it can be fetched; empty: the user brings it."""
    published: str | None = None
    """SHA-256, where its author gives it."""

    @property
    def checksum(self) -> str | None:
        """The SHA-256 it must have: the published or the recorded one; None: nothing is known."""
        return self.published or fetched().get(str(self.path), {}).get("sha256")


def released_files(benchmark: Benchmark) -> Iterator[ReleasedFile]:
    """The files of others that a benchmark names, a dry run's random ones included."""
    autoencoder, extractor, reference = benchmark.autoencoder, benchmark.extractor, benchmark.evaluation.reference
    if autoencoder.weights is not None and autoencoder.kind != "kmeans":  # the encode stage makes that
        mirrors, path = MIRRORS.get(autoencoder.kind, ()), expand(autoencoder.weights)
        if mirrors and path.suffix not in (suffixes := (".ckpt", ".pth", ".safetensors")):  # a folder
            path = next((p for s in suffixes for p in path.glob(f"*{s}")), path / mirrors[-1].name)
        yield ReleasedFile("autoencoder", path, mirrors)
    if extractor.weights is not None:
        yield ReleasedFile("Inception", expand(extractor.weights), MIRRORS["inception"], PUBLISHED["inception"])
    if reference is not None:
        resolution, name = benchmark.data.resolution, Path(reference).name
        mirrors = (f"{REFERENCE_HOST}/{resolution}/{name}",) if name == REFERENCES.get(resolution) else ()
        yield ReleasedFile("reference statistics", expand(reference), mirrors)
    for size in benchmark.sizes if benchmark.weights == "released" else ():
        yield checkpoint(benchmark.released, size)


def checkpoint(released: ReleasedConfig, size: str) -> ReleasedFile:
    """The released checkpoint of a size."""
    name = released.files[size]
    source = HubFile(released.repository, name)
    return ReleasedFile(f"checkpoint {size}", expand(released.folder) / name, (source,), released.sha256.get(size))


def released_file(resolution: int, size: str) -> HubFile:
    """The authors' checkpoint of one of the paper's nine models."""
    return HubFile("GSAI-ML/eMIGM", f"{resolution}_model/eMIGM_{_LONG[size]}_{resolution}_checkpoint.pth")


def fetched() -> dict[str, dict[str, Any]]:
    """The record of `emigm fetch`; raises ConfigError where it is damaged."""
    if not FETCHED.is_file():
        return {}
    remedy = "delete it, and `emigm fetch` writes it again"
    tree = read_json(FETCHED, remedy)
    if not all(isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in tree.values()):
        raise ConfigError(f"{FETCHED}: an entry has no sha256; {remedy}")
    return tree


def recorded(name: str) -> str | None:
    """SHA-256 that `emigm fetch` recorded of a file of this name, whatever its folder; None: it has fetched none."""
    return next((entry["sha256"] for path, entry in fetched().items() if Path(path).name == name), None)
