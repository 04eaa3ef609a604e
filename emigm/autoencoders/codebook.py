"""Autoencoders whose latents are codes: the centres of a k-means of patches, and a VQ autoencoder.

Raw latents are the codes as float32 (so that the store holds one type), unit latents the codes as int64, both
(B, 1, H / stride, W / stride).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from emigm.autoencoders.base import Autoencoder, channels_last
from emigm.config.errors import ConfigError
from emigm.config.schema import AutoencoderConfig, Precision
from emigm.io import read_arrays, write_arrays
from emigm.model.weights import check_state, read_tensors


class Codes(Autoencoder):
    """Common to all: a sample of raw latents is the codes themselves."""

    latent_channels = 1

    def sample(self, raw: Tensor, generator: torch.Generator | None = None, *, noise: Tensor | None = None) -> Tensor:
        return raw.long()


class KMeans(Codes):
    """The nearest of learned patches of pixels at every position: a codebook without a network.

    Args:
        centres: patches in [-1, 1], float32 (V, channels x patch x patch).
        patch: their side in pixels.
        device: where it works.
    """

    kind = "kmeans"

    def __init__(self, centres: Tensor, patch: int, device: str | torch.device = "cpu"):
        super().__init__(1.0, device)
        self.centres, self.stride = centres.to(device), patch
        self.channels = centres.shape[1] // patch**2

    def _encode(self, images: Tensor) -> Tensor:
        b, _, height, width = images.shape
        patches = patches_of(images, self.stride)
        # Without matrix products, whose rounding depends on the batch: a tie must fall alike in every one.
        distances = torch.cdist(patches, self.centres, compute_mode="donot_use_mm_for_euclid_dist")
        return distances.argmin(-1).view(b, 1, height // self.stride, width // self.stride).float()

    def _decode(self, latents: Tensor) -> Tensor:
        b, _, h, w = latents.shape
        patches = self.centres[latents[:, 0].long()].view(b, h, w, self.channels, self.stride, self.stride)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, self.channels, h * self.stride, w * self.stride)

    def _check_pixels(self, pixels: Tensor) -> None:
        _, channels, height, width = pixels.shape
        if channels != self.channels or height % self.stride or width % self.stride:
            raise ConfigError(
                f"autoencoder kind: kmeans has patches of {self.channels} channels and {self.stride} pixels, which do "
                f"not make images of {channels} x {height} x {width}; set autoencoder.patch to a divisor of the sides "
                "and fit it on images like these"
            )


def patches_of(images: Tensor, patch: int) -> Tensor:
    """Images (B, C, H, W) => their patches in reading order (B x H/patch x W/patch, C x patch x patch)."""
    b, c, height, width = images.shape
    cells = images.view(b, c, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(-1, c * patch * patch)


def fit_codebook(pixels: np.ndarray, codes: int, patch: int) -> np.ndarray:
    """Centres of a k-means of the images' patches (Lloyd's algorithm, scikit-learn's k-means++ start).

    Args:
        pixels: training images, uint8 (n, channels, H, W).
        codes: V, number of centres.
        patch: side of a patch in pixels.

    Returns:
        Patches in [-1, 1], float32 (V, channels x patch x patch); the same for the same images on the same machine.

    Raises:
        ConfigError: the patch does not divide the images, or they have fewer different patches than codes.
    """
    from sklearn.cluster import KMeans as Clustering  # a second to import
    from threadpoolctl import threadpool_limits

    _, _, height, width = pixels.shape
    if height % patch or width % patch:
        raise ConfigError(f"autoencoder.patch = {patch} does not divide images of {height} x {width} pixels")
    patches = patches_of(torch.from_numpy(pixels).float() / 127.5 - 1, patch).numpy()
    patches = patches[:: -(-len(patches) // MOST_PATCHES)]
    if (distinct := len(np.unique(patches, axis=0))) < codes:
        raise ConfigError(f"autoencoder.codebook = {codes}: the images have only {distinct} different patches")
    with threadpool_limits(1):  # threads add up sums in another order in every run
        centres = Clustering(codes, n_init=1, random_state=0, algorithm="lloyd").fit(patches).cluster_centers_
    return centres.astype(np.float32)


MOST_PATCHES = 500_000
"""Patches a codebook is fitted on, at most; evenly spaced ones of more."""


def save_codebook(path: Path, centres: np.ndarray) -> None:
    """Write the centres (V, channels x patch x patch) as `.npz` with their checksum."""
    write_arrays(path, centres=centres)


def _load_kmeans(cfg: AutoencoderConfig, device: str | torch.device) -> KMeans:
    remedy = "the encode stage writes it; run dvc repro"
    centres = read_arrays(cfg.weights, ["centres"], remedy)["centres"]
    if len(centres) != cfg.codebook or centres.shape[1] % cfg.patch**2:
        raise ConfigError(
            f"{cfg.weights}: {len(centres)} patches of {centres.shape[1]} numbers, not {cfg.codebook} of "
            f"{cfg.patch} x {cfg.patch} pixels; {remedy}"
        )
    return KMeans(torch.from_numpy(centres), cfg.patch, device)


class VQ(Codes):
    """diffusers' VQModel: the code of the nearest codebook vector at every position."""

    kind = "vq"

    def __init__(self, module: nn.Module, device: str | torch.device = "cpu", precision: Precision = "float32"):
        super().__init__(1.0, device, precision)
        self.module = channels_last(module)
        self.stride = 2 ** (len(module.config.block_out_channels) - 1)

    def _encode(self, images: Tensor) -> Tensor:
        features = self.module.encode(images).latents  # (B, d, h, w)
        vectors = self.module.quantize.embedding.weight  # (codes, d)
        codes = torch.cdist(features.permute(0, 2, 3, 1).flatten(1, 2), vectors).argmin(-1)
        return codes.view(len(images), 1, *features.shape[2:]).float()

    def _decode(self, latents: Tensor) -> Tensor:
        vectors = self.module.quantize.embedding(latents[:, 0].long()).permute(0, 3, 1, 2)
        return self.module.decode(vectors.contiguous(), force_not_quantize=True).sample

    def _check_pixels(self, pixels: Tensor) -> None:
        _, channels, height, width = pixels.shape
        wanted = self.module.config.in_channels
        if channels != wanted or height % self.stride or width % self.stride:
            raise ConfigError(
                f"autoencoder kind: vq takes images of {wanted} channels with sides that are multiples of "
                f"{self.stride}, not {channels} x {height} x {width}; resize the images or set another kind"
            )


def load_codes(cfg: AutoencoderConfig, device: str | torch.device = "cpu") -> Codes:
    """The configured autoencoder of codes.

    Raises:
        ConfigError: the weights are missing, damaged or of another codebook.
    """
    if cfg.kind == "kmeans":
        return _load_kmeans(cfg, device)
    from diffusers import VQModel  # importing diffusers takes seconds

    folder = Path(cfg.weights)
    config = folder / "config.json"
    if not config.is_file():
        raise ConfigError(f"{config}: no such file; autoencoder.weights of kind: vq names a folder saved by diffusers")
    try:
        settings = json.loads(config.read_text())
    except json.JSONDecodeError as e:
        raise ConfigError(f"{config}: not valid JSON ({e}); download it again") from e
    with torch.device("meta"):
        module = VQModel.from_config(settings)
    if module.config.num_vq_embeddings != cfg.codebook:
        raise ConfigError(
            f"{config}: a codebook of {module.config.num_vq_embeddings} codes; autoencoder.codebook is {cfg.codebook}"
        )
    weights = folder / "diffusion_pytorch_model.safetensors"
    state = read_tensors(weights)
    check_state(state, module, weights)
    module.load_state_dict(state, assign=True)
    return VQ(module.to(device).eval().requires_grad_(False), device, cfg.precision)
