"""The feature extractor of small images, grey or in colour: a classifier, its training and its files."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emigm.config.errors import check
from emigm.config.schema import ClassifierTraining
from emigm.io import read_index, sha256, write_index
from emigm.model.weights import check_state, read_tensors, write_tensors

SOURCE_FILE = "source.json"
"""In the extractor's folder: where the weights lie, and their checksums."""
FEATURES = 64
"""Hidden units of the classifier, which are the features."""
TRACE = 100.0
"""The features are scaled so that their covariance over the training images has this trace."""
AT_ONCE = 5000
"""Images of a large set that are classified at once."""


class Classifier(nn.Module):
    """Three convolutions and two linear layers for small images; its 64 hidden units are the features.

    SiLU keeps the features from collapsing onto the classes, as ReLU lets them: FID then hardly tells images with
    shuffled tokens from held-out ones.
    """

    def __init__(self, classes: int, side: int, channels: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1, stride=2)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1, stride=2)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * math.ceil(side / 4) ** 2, FEATURES)
        self.logits = nn.Linear(FEATURES, classes)
        self.register_buffer("feature_scale", torch.ones(()))
        self.register_buffer("side", torch.tensor(side))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, side, side) of the images."""
        return (self.conv1.in_channels, int(self.side), int(self.side))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels in 0..255 (B, channels, side, side) => features scaled to TRACE (B, 64), logits (B, classes)."""
        x = pixels.float() / 127.5 - 1
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = F.silu(convolution(x))
        x = F.silu(self.hidden(x.flatten(1)))
        return x * self.feature_scale, self.logits(x)


def train_classifier(pixels: np.ndarray, labels: np.ndarray, cfg: ClassifierTraining, seed: int) -> Classifier:
    """Train the classifier on pixels uint8 (n, channels, side, side) and labels (n,), then set its feature scale."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(pixels), torch.from_numpy(labels)
    model = Classifier(int(labels.max()) + 1, pixels.shape[-1], pixels.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr, weight_decay=0.01)
    for _ in range(cfg.steps):
        i = torch.randint(len(x), (cfg.batch,), generator=generator)
        F.cross_entropy(model(x[i])[1], y[i]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval().requires_grad_(False)
    features = torch.cat([model(part)[0] for part in x.split(AT_ONCE)])
    model.feature_scale.copy_((TRACE / torch.cov(features.double().T).trace()).sqrt())
    return model


def classification_accuracy_score(
    images: tuple[np.ndarray, np.ndarray], real: tuple[np.ndarray, np.ndarray], cfg: ClassifierTraining, steps: int
) -> float:
    """CAS (Ravuri and Vinyals 2019, arXiv 1905.10887): share of held-out `real` images whose class a classifier finds
    that was trained on generated `images` alone. Pixels and labels of both; trained as the extractor is, from its first
    seed, but for so many `steps`."""
    return accuracy(train_classifier(*images, dataclasses.replace(cfg, steps=steps), cfg.seeds[0]), *real)


def accuracy(model: Classifier, pixels: np.ndarray, labels: np.ndarray) -> float:
    """Share of the images that the classifier assigns to their class."""
    classes = torch.cat([model(part)[1].argmax(1) for part in torch.from_numpy(pixels).split(AT_ONCE)])
    return float((classes.numpy() == labels).mean())


def weights_file(folder: Path, seed: int) -> Path:
    """Where the classifier that was trained from a seed lies in the extractor's folder."""
    return folder / f"seed{seed}.safetensors"


def save_classifier(folder: Path, seed: int, model: Classifier) -> Path:
    """Write the classifier of a seed; `note_weights` makes it one of the extractor's. Returns its file."""
    file = weights_file(folder, seed)
    write_tensors(file, model.state_dict())
    return file


def load_classifier(path: Path) -> Classifier:
    """Read what `save_classifier` wrote; raises ConfigError when missing or damaged."""
    state = read_tensors(path)
    for name in ("logits.bias", "side", "conv1.weight"):
        check(name in state, f"{path}: tensor {name} is missing; delete it and run dvc repro")
    model = Classifier(len(state["logits.bias"]), int(state["side"]), state["conv1.weight"].shape[1])
    check_state(state, model, path)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def note_weights(folder: Path, *files: Path) -> list[dict[str, Any]]:
    """Note in an extractor's folder which files its weights are (path, sha256, bytes); returns that."""
    facts = []
    for file in files:
        inside = file.parent == folder
        place = {"path": file.name if inside else str(file), "inside": inside}
        facts.append(place | {"sha256": sha256(file), "bytes": file.stat().st_size})
    write_index(folder / SOURCE_FILE, {"weights": facts})
    return facts


def noted_weights(folder: Path, remedy: str) -> dict[Path, str]:
    """The weights files noted in an extractor's folder, and their checksums; raises ConfigError, with the remedy,
    unless they are the same."""
    note, files = folder / SOURCE_FILE, {}
    check(note.is_file(), f"{note}: no such file; the extractor stage has not run (dvc repro)")
    again = f"run dvc repro --force extractor@{folder.parent.name}"
    for facts in read_index(note, again)["weights"]:
        path, checksum = folder / facts["path"] if facts["inside"] else Path(facts["path"]), facts["sha256"]
        check(path.is_file(), f"{path}: no such file ({remedy})")
        seen = f"not the file the extractor stage has seen (sha256 {checksum})"
        check(sha256(path) == checksum, f"{path}: {seen}; put that back, or {again}")
        files[path] = checksum
    return files
