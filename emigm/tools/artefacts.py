"""The files that others released: where they lie, and the checksums they are known by. No torch in this module.

A checksum is *published* where its author or the host gives one, and *recorded* where `emigm fetch` saw the file first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from emigm.config.errors import ConfigError
from emigm.io import read_json


class HubFile(NamedTuple):
    """A file of a model repository on the Hugging Face Hub, which publishes the SHA-256 of large files."""

    repository: str
    name: str
    revision: str | None = None
    """Branch, tag or commit; None: the repository's main branch."""


EMIGM_REPOSITORY = "GSAI-ML/eMIGM"
EMIGM_REVISION = "main"
"""Revision of the authors' repository that released names stand for."""
_LONG = {"xs": "xsmall", "s": "small", "b": "base", "l": "large", "h": "huge"}

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
PUBLISHED = {"inception": "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"}
"""SHA-256 by kind. Inception: its first digits are part of the name, pytorch-fid publishes the file they belong to."""

MIRRORS: dict[str, tuple[str | HubFile, ...]] = {
    "kl16": (
        # MAR's own link first (github.com/LTH14/mar, util/download.py).
        "https://www.dropbox.com/scl/fi/hhmuvaiacrarfg28qxhwz/kl16.ckpt?rlkey=l44xipsezc8atcffdp4q7mwmh&dl=1",
        HubFile("xwen99/mar-vae-kl16", "kl16.ckpt"),
    ),
    "dcae": (HubFile("mit-han-lab/dc-ae-f32c32-in-1.0", "model.safetensors"),),
    "inception": (
        f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    ),
}
"""By kind of autoencoder or extractor, in the order in which they are tried."""

REFERENCES = {256: "VIRTUAL_imagenet256_labeled.npz", 512: "VIRTUAL_imagenet512.npz"}
"""ADM's statistics of ImageNet's training images, by resolution."""
FETCHED = Path("weights") / "fetched.json"
"""What `emigm fetch` got: path -> SHA-256, bytes and where from."""


def reference_mirrors(resolution: int) -> tuple[str, ...]:
    """Where ADM's statistics lie."""
    host = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"
    return (f"{host}/{resolution}/{REFERENCES[resolution]}",)


def released_file(resolution: int, size: str) -> HubFile:
    """The authors' checkpoint of one of the paper's nine models."""
    name = f"{resolution}_model/eMIGM_{_LONG[size]}_{resolution}_checkpoint.pth"
    return HubFile(EMIGM_REPOSITORY, name, EMIGM_REVISION)


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
