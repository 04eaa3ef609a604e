"""What all autoencoders share: three spaces of data, all NCHW.

Pixels, uint8; raw latents, float32, what `encode` gives and the disk holds (for KL-16 a distribution: its mean and
log-variance side by side); unit latents, a sample of the raw ones times the configured scale: what the network sees.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from emigm.config.errors import ConfigError, RunError
from emigm.config.schema import Precision
from emigm.model.precision import autocast, overflow
from emigm.model.weights import upload

BATCH = 16  # images encoded or decoded at once; bounds the memory


class Autoencoder(ABC):
    """Maps between the three spaces, in evaluation mode, without gradients.

    Batches are worked on on `device`; results go back to where the arguments lie. `precision` is that of convolutions
    and matrix products: latents, and what is rounded to 8 bits, are float32.
    """

    kind: ClassVar[str]
    latent_channels: ClassVar[int | None] = None
    """Channels of unit latents; None: as many as the images have."""
    stride: int = 1
    """Pixels of an image's side that make one latent position."""

    def __init__(self, scale: float, device: str | torch.device = "cpu", precision: Precision = "float32"):
        self.scale = scale
        self.device = torch.device(device)
        self.precision = precision

    @torch.inference_mode()
    def encode(self, pixels: Tensor, batch: int = BATCH) -> Tensor:
        """Pixels, uint8 (B, 3 or 1, H, W) => raw latents, float32 (B, ...); RunError unless they are finite (the
        encoder can overflow float16)."""
        return self._in_batches(lambda x: self._encode(x.float() / 127.5 - 1).float(), pixels, batch)

    def sample(self, raw: Tensor, generator: torch.Generator | None = None, *, noise: Tensor | None = None) -> Tensor:
        """Raw latents => unit latents (B, latent_channels, H / stride, W / stride).

        Where raw latents are a distribution, `generator` draws the noise, unless `noise` has been drawn.
        """
        # Not under inference_mode: training differentiates through operations on this result.
        return self._draw(raw, self.noise(raw.shape, generator) if noise is None else noise) * self.scale

    def noise(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor | None:
        """Standard normal noise for `sample` of raw latents of this shape, on the generator's device; None where raw
        latents are exact."""
        return None

    @torch.inference_mode()
    def decode(self, unit: Tensor, batch: int = BATCH) -> Tensor:
        """Unit latents => pixels, uint8 (B, 3 or 1, H, W), rounded as numpy rounds (halves to even).

        They are rounded from float32, whatever the decoder's precision. The official evaluation scales the decoder's
        float16 output by 255 in float16, in steps of 1/8 grey level, which moves one pixel in 25 by a level
        (`emigm bench` measures it). RunError unless images are finite.
        """
        if self.latent_channels not in (None, unit.shape[1]):
            raise ConfigError(
                f"autoencoder kind: {self.kind} decodes latents of {self.latent_channels} channels, not of "
                f"{unit.shape[1]}; set model.channels: {self.latent_channels}"
            )
        return self._in_batches(lambda z: self._decode(z.float() / self.scale).float(), unit, batch, _eight_bits)

    @abstractmethod
    def _encode(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] => raw latents."""

    @abstractmethod
    def _decode(self, latents: Tensor) -> Tensor:
        """A sample of raw latents => images, about in [-1, 1]."""

    def _draw(self, raw: Tensor, noise: Tensor | None) -> Tensor:
        """A sample of raw latents; themselves, unless they are a distribution."""
        return raw

    def _in_batches(
        self, fn: Callable[[Tensor], Tensor], x: Tensor, batch: int, finish: Callable[[Tensor], Tensor] = lambda y: y
    ) -> Tensor:
        """finish(fn(x)) a batch at a time; what `fn`, under autocast, gives must be finite."""
        parts, finite = [], []
        for part in x.split(batch):
            with autocast(self.precision, self.device):
                y = fn(upload(part, self.device))
            finite.append(y.isfinite().all())
            parts.append(finish(y).to(x.device))
        if not torch.stack(finite).all():
            raise RunError(overflow(f"autoencoder kind: {self.kind}", self.precision, "autoencoder.precision"))
        return torch.cat(parts)


def _eight_bits(images: Tensor) -> Tensor:
    return ((images + 1) / 2 * 255).clamp(0, 255).round().to(torch.uint8)


class Pixels(Autoencoder):
    """No autoencoder: raw latents are the pixels, in [-1, 1]."""

    kind = "pixels"

    def _encode(self, images: Tensor) -> Tensor:
        return images

    def _decode(self, latents: Tensor) -> Tensor:
        return latents
