"""The heads: p(token | z) as a diffusion model (MAR's per-token MLP), or as a categorical distribution.

MAR: Li et al. 2024, arXiv 2406.11838. DiT: Peebles & Xie 2022, arXiv 2212.09748.

Shape letters: M tokens, C token channels, D backbone width, W head width, V codes of the codebook.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emigm.config.schema import ModelConfig
from emigm.model.backbone import LN_EPS, init_linear
from emigm.model.diffusion import T

FREQUENCIES = 256


def frequencies(device: torch.device) -> Tensor:
    """Frequencies 10000^(-i / 128) of the time features, (128,) float32 (Vaswani et al. 2017, arXiv 1706.03762, section
    3.5).

    In float32 as the official ones, so their last bits depend on the processor.
    """
    half = FREQUENCIES // 2
    octave = torch.arange(half, dtype=torch.float32, device=device) / half
    return torch.exp(-math.log(10000) * octave)


class TimeEmbedding(nn.Module):
    """Sinusoidal features of the diffusion time, then a two-layer MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self._kept: Tensor | None = None

    def forward(self, time: Tensor) -> Tensor:
        """time (...,) in steps of the 1000-step process, fractions allowed => (..., W)."""
        return self.mlp(self.features(time))

    def features(self, time: Tensor) -> Tensor:
        """Cosines and sines of the time (...,) at all frequencies (..., 256)."""
        angle = time[..., None].float() * frequencies(time.device)
        return torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.mlp[0].weight.dtype)

    def every_step(self, device: torch.device) -> Tensor:
        """Embeddings of the steps 0 .. T - 1 (T, W); their features are kept from one call to the next."""
        if self._kept is None or (self._kept.device, self._kept.dtype) != (device, self.mlp[0].weight.dtype):
            with torch.inference_mode(False):  # training can use them too
                self._kept = self.features(torch.arange(T, device=device))
        return self.mlp(self._kept)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift, all (M, W)."""
    return torch.addcmul(shift, x, 1 + scale)


class ResidualBlock(nn.Module):
    """MLP block with adaLN shift, scale and gate from the condition (DiT, section 3.2, adaLN-Zero)."""

    def __init__(self, width: int):
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=LN_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        # SiLU(y) is the same in every block, so `denoise` takes it once; the names stay the official ones.
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (M, W), y (M, W) after SiLU => (M, W)."""
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        return torch.addcmul(x, gate, self.mlp(modulate(self.in_ln(x), shift, scale)))


class FinalLayer(nn.Module):
    """LayerNorm without parameters, adaLN shift and scale, projection to noise and variance."""

    def __init__(self, width: int, out_channels: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=LN_EPS)
        self.linear = nn.Linear(width, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (M, W), y (M, W) after SiLU => (M, 2C)."""
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiffusionHead(nn.Module):
    """p(token | z) as a diffusion model (MAR, section 3.3); its output holds the noise and the variance's interpolation
    (Nichol & Dhariwal 2021, arXiv 2102.09672, equation 15)."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        width, channels = cfg.head_width, cfg.token_channels
        self.time_embed = TimeEmbedding(width)
        self.cond_embed = nn.Linear(cfg.width, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(cfg.head_blocks))
        self.final_layer = FinalLayer(width, 2 * channels)
        self._initialise()

    def _initialise(self) -> None:
        if self.input_proj.weight.is_meta:  # as in the backbone
            return
        init_linear(self)
        for layer in (self.time_embed.mlp[0], self.time_embed.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)
        for part in (*self.res_blocks, self.final_layer):  # blocks start as the identity
            nn.init.zeros_(part.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def embed_steps(self, time: Tensor) -> Tensor:
        """Embedded whole steps: int64 (...,) => (..., W); each of the T steps is embedded at most once."""
        if time.numel() <= T:
            return self.time_embed(time)
        # In float32, since under autocast on a CPU its gradient is summed in bfloat16 otherwise.
        return F.embedding(time, self.time_embed.every_step(time.device).float())

    def forward(self, x: Tensor, time: Tensor, z: Tensor) -> Tensor:
        """x (M, C), time (M,) or (), z (M, D) => noise and variance (M, 2C)."""
        return self.denoise(x, self.time_embed(time) + self.cond_embed(z))

    def denoise(self, x: Tensor, y: Tensor) -> Tensor:
        """As `forward`, from y (M, W) = embedded time + embedded condition."""
        x, y = self.input_proj(x), F.silu(y)
        for block in self.res_blocks:
            x = block(x, y)
        return self.final_layer(x, y)


class CategoricalHead(nn.Module):
    """p(token | z) as a categorical distribution over a codebook, as MaskGIT and MDM have (Table 1)."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cond_embed = nn.Linear(cfg.width, cfg.head_width)
        self.res_blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(cfg.head_width, eps=LN_EPS),
                nn.Linear(cfg.head_width, cfg.head_width),
                nn.SiLU(),
                nn.Linear(cfg.head_width, cfg.head_width),
            )
            for _ in range(cfg.head_blocks)
        )
        self.norm = nn.LayerNorm(cfg.head_width, eps=LN_EPS)
        self.logits = nn.Linear(cfg.head_width, cfg.codebook)
        if not self.logits.weight.is_meta:
            init_linear(self)
            nn.init.zeros_(self.logits.weight)  # starts at equal chances, as the diffusion head starts at zero

    def forward(self, z: Tensor) -> Tensor:
        """z (..., D) => logits (..., V)."""
        x = self.cond_embed(z)
        for block in self.res_blocks:
            x = x + block(x)
        return self.logits(self.norm(x))
