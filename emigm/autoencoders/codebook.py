"""Autoencoders whose latents are codes: grey levels, and a VQ autoencoder.

Raw latents are the codes as float32 (so that the store holds one type), unit latents the codes as int64, both
(B, 1, H / stride, W / stride).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from emigm.autoencoders.autoencoder import Autoencoder
from emigm.config.errors import ConfigError
from emigm.config.schema import AutoencoderConfig
from emigm.model.weights import check_state, read_tensors


class Codes(Autoencoder):
    """Common to both: a sample of raw latents is the codes themselves."""

    latent_channels = 1

    def sample(self, raw: Tensor, generator: torch.Generator | None = None, *, noise: Tensor | None = None) -> Tensor:
        return raw.long()


class Levels(Codes):
    """Every grey pixel is its level: evenly spaced, `codebook` of them."""

    kind = "levels"

    def __init__(self, codebook: int, device: str | torch.device = "cpu"):
        super().__init__(1.0, device)
        self.top = codebook - 1

    def _encode(self, images: Tensor) -> Tensor:
        return ((images + 1) / 2 * self.top).round()

    def _decode(self, latents: Tensor) -> Tensor:
        return latents / self.top * 2 - 1

    def _check_pixels(self, pixels: Tensor) -> None:
        if pixels.shape[1] != 1:
            raise ConfigError(f"autoencoder kind: levels takes grey images, not {pixels.shape[1]} channels")


class VQ(Codes):
    """diffusers' VQModel: the code of the nearest codebook vector at every position."""

    kind = "vq"

    def __init__(self, module: nn.Module, device: str | torch.device = "cpu"):
        super().__init__(1.0, device)
        self.module = module
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
    if cfg.kind == "levels":
        return Levels(cfg.codebook, device)
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
    return VQ(module.to(device).eval().requires_grad_(False), device)
