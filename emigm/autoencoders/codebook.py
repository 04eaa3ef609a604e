"""An autoencoder whose latents are codes: the nearest centre of a k-means of patches of pixels.

Raw latents are the codes as float32 (so that the store holds one type), unit latents the codes as int64, both
(B, 1, H / patch, W / patch).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emigm.autoencoders.base import Autoencoder
from emigm.config.errors import ConfigError
from emigm.config.schema import AutoencoderConfig
from emigm.io import read_arrays

MOST_PATCHES = 500_000  # patches a codebook is fitted on, at most; evenly spaced ones of more


class KMeans(Autoencoder):
    """The nearest of learned patches at every position: a codebook without a network.

    `centres` are patches of pixels in [-1, 1], float32 (V, channels x patch x patch).
    """

    kind, latent_channels = "kmeans", 1

    def __init__(self, centres: Tensor, patch: int, device: str | torch.device = "cpu"):
        super().__init__(1.0, device)
        self.centres, self.stride = centres.to(device), patch

    def sample(self, raw: Tensor, generator: torch.Generator | None = None, *, noise: Tensor | None = None) -> Tensor:
        return raw.long()

    def _encode(self, images: Tensor) -> Tensor:
        b, _, height, width = images.shape
        patches = patches_of(images, self.stride)
        # Without matrix products, whose rounding depends on the batch: a tie must fall alike in every one.
        distances = torch.cdist(patches, self.centres, compute_mode="donot_use_mm_for_euclid_dist")
        return distances.argmin(-1).view(b, 1, height // self.stride, width // self.stride).float()

    def _decode(self, latents: Tensor) -> Tensor:
        codes = latents[:, 0].long()  # (B, h, w)
        return F.pixel_shuffle(self.centres[codes].permute(0, 3, 1, 2).contiguous(), self.stride)


def patches_of(images: Tensor, patch: int) -> Tensor:
    """Images (B, C, H, W) => their patches in reading order (B x H/patch x W/patch, C x patch x patch)."""
    return F.pixel_unshuffle(images, patch).permute(0, 2, 3, 1).flatten(0, 2)


def fit_codebook(pixels: np.ndarray, codes: int, patch: int) -> np.ndarray:
    """V = `codes` centres of a k-means (Lloyd's algorithm, k-means++ start) of the images' patches.

    Pixels, uint8 (n, channels, H, W) => patches in [-1, 1], float32 (V, channels x patch x patch), which are the same
    for the same images on the same machine. ConfigError where the images have fewer different patches than codes.
    """
    from sklearn.cluster import KMeans as Clustering  # a second to import
    from threadpoolctl import threadpool_limits

    patches = patches_of(torch.from_numpy(pixels).float() / 127.5 - 1, patch).numpy()
    patches = patches[:: -(-len(patches) // MOST_PATCHES)]
    if (distinct := len(np.unique(patches, axis=0))) < codes:
        raise ConfigError(f"autoencoder.codebook = {codes}: the images have only {distinct} different patches")
    with threadpool_limits(1):  # threads add up sums in another order in every run
        centres = Clustering(codes, n_init=1, random_state=0, algorithm="lloyd").fit(patches).cluster_centers_
    return centres.astype(np.float32)


def load_kmeans(cfg: AutoencoderConfig, device: str | torch.device = "cpu") -> KMeans:
    """Read the centres that the encode stage wrote; raises ConfigError when missing, damaged or of another size."""
    remedy = "the encode stage writes it; run dvc repro"
    centres = read_arrays(cfg.weights, ["centres"], remedy)["centres"]
    if len(centres) != cfg.codebook or centres.shape[1] % cfg.patch**2:
        raise ConfigError(
            f"{cfg.weights}: {len(centres)} patches of {centres.shape[1]} numbers, not {cfg.codebook} of "
            f"{cfg.patch} x {cfg.patch} pixels; {remedy}"
        )
    return KMeans(torch.from_numpy(centres), cfg.patch, device)
