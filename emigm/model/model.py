"""The model of Table 1's systems: patches, backbone and head; its loss; saving and loading.

Shape letters: B images, L tokens, M masked tokens of an image, C token channels, D width, R diffusion
times a token is trained at (`diffusion_batch_mul`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from emigm.config.errors import ConfigError
from emigm.config.parsing import as_dict, parse
from emigm.config.schema import ModelConfig, TrainConfig
from emigm.files import read_index, sha256, write_atomically, write_index
from emigm.model import diffusion
from emigm.model.backbone import Backbone, select_rows
from emigm.model.head import CategoricalHead, DiffusionHead
from emigm.model.schedules import draw_mask_count, elbo_weight, mean_gamma
from emigm.model.weights import check_state, read_tensors

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
REMEDY = "train or import the model again"


class TrainingDraw(NamedTuple):
    """Everything random in one training step, so that the loss is a function."""

    weight: float  # of the mean loss over the masked tokens
    masked: Tensor  # positions of the masked tokens, ascending, int64 (B, M)
    dropped: Tensor  # images whose class is dropped, bool (B,)
    # Of the diffusion head only; with the categorical one R = 0.
    time: Tensor  # diffusion step of every masked token, int64 (R, B, M)
    noise: Tensor  # (R, B, M, C)


def draw_training(
    cfg: ModelConfig, train: TrainConfig, batch: int, rng: np.random.Generator, generator: torch.Generator
) -> TrainingDraw:
    """Draw one step: the mask's size once for the batch (from `rng`), the rest for each image on the
    generator's device."""
    device = generator.device
    t, count = draw_mask_count(train.schedule, train.t_min, cfg.tokens, rng, train.masking)
    order = torch.rand(batch, cfg.tokens, generator=generator, device=device).argsort(dim=1)
    shape = (train.diffusion_batch_mul if cfg.codebook is None else 0, batch, count)
    return TrainingDraw(
        weight=1.0 if train.weight == "one" else _elbo_weight(cfg, train, t, count),
        masked=order[:, :count].sort(dim=1).values,
        dropped=torch.rand(batch, generator=generator, device=device) < train.label_dropout,
        time=torch.randint(diffusion.T, shape, generator=generator, device=device),
        noise=torch.randn(*shape, cfg.token_channels, generator=generator, device=device),
    )


def _elbo_weight(cfg: ModelConfig, train: TrainConfig, t: float, count: int) -> float:
    """What the mean loss over `count` masked tokens is multiplied by.

    The ELBO weighs their sum by gamma'/gamma. The official code has a time for every image, and divides a batch by all
    its masked tokens; on average so does this, with one time for the batch. With the MAE trick the official code has
    one time as well, and multiplies the mean by gamma'/gamma.
    """
    weight = float(elbo_weight(train.schedule, t))
    return weight if cfg.mae else weight * count / (cfg.tokens * mean_gamma(train.schedule, train.t_min))


class EMIGM(nn.Module):
    """Effective and efficient masked image generation model."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.backbone = Backbone(cfg)
        self.head = DiffusionHead(cfg) if cfg.codebook is None else CategoricalHead(cfg)

    def patchify(self, latents: Tensor) -> Tensor:
        """Unit latents (B, channels, grid, grid) => tokens (B, L, C)."""
        b, c, g, _ = latents.shape
        p, n = self.cfg.patch, g // self.cfg.patch
        return latents.view(b, c, n, p, n, p).permute(0, 2, 4, 1, 3, 5).reshape(b, n * n, c * p * p)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Inverse of `patchify`."""
        b, (p, c, g) = tokens.shape[0], (self.cfg.patch, self.cfg.channels, self.cfg.grid)
        n = g // p
        return tokens.reshape(b, n, n, c, p, p).permute(0, 3, 1, 4, 2, 5).reshape(b, c, g, g)

    def forward(self, latents: Tensor, labels: Tensor, draw: TrainingDraw) -> Tensor:
        """Training loss, a scalar: the head's loss averaged over masked tokens and their R times, times the
        step's weight.

        Args:
            latents: unit latents (B, channels, grid, grid), or codes (B, 1, grid, grid).
            labels: classes, int64 (B,).
            draw: the step's randomness.
        """
        loss, _ = self.token_losses(latents, labels, draw)
        return loss.mean() * draw.weight

    def token_losses(self, latents: Tensor, labels: Tensor, draw: TrainingDraw) -> tuple[Tensor, Tensor]:
        """(loss, squared error of the noise) of every masked token at every time, each (R, B, M); with the
        categorical head, its cross-entropy in nats, twice, with R = 1."""
        tokens = self.patchify(latents)
        mask = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        mask.scatter_(1, draw.masked, True)
        z = self.condition(tokens, mask, labels, draw.masked.shape[1], draw.dropped)

        # Only masked rows reach the head, and its condition is embedded once for all R times.
        z, x0 = select_rows(z, draw.masked), select_rows(tokens, draw.masked)  # (B, M, D), (B, M, C)
        if self.cfg.codebook is not None:
            loss = F.cross_entropy(self.head(z).flatten(0, 1).float(), x0.flatten(), reduction="none")
            loss = loss.view(1, *x0.shape[:2])
            return loss, loss
        repeats = draw.time.shape[0]
        y = self.head.embed_steps(draw.time) + self.head.cond_embed(z)  # (R, B, M, W)
        x0 = x0.expand(repeats, -1, -1, -1).flatten(0, 2)
        noise, time = draw.noise.flatten(0, 2), draw.time.flatten()
        output = self.head.denoise(diffusion.q_sample(x0, noise, time), y.flatten(0, 2))
        loss, mse = diffusion.denoising_loss(output.to(x0.dtype), x0, noise, time)
        return loss.view_as(draw.time), mse.view_as(draw.time)

    def condition(
        self, tokens: Tensor, mask: Tensor, labels: Tensor, n_masked: int, dropped: Tensor | None = None
    ) -> Tensor:
        """z (B, L, D) of tokens (B, L, C) under mask (B, L), `n_masked` of each image; see `Backbone.forward`."""
        condition = self.backbone.embed_class(labels, dropped)
        return self.backbone(tokens, mask, condition, self.cfg.tokens - n_masked)


def save_model(folder: str | Path, state: dict[str, Tensor], cfg: ModelConfig, **facts: Any) -> None:
    """Write `model.safetensors` and `config.json` into `folder`; `facts` (origin, latent scale, ...) go beside
    the architecture, and so does the weights' checksum. The configuration comes last, so a folder whose two files
    agree is whole."""
    folder = Path(folder)
    weights = folder / WEIGHTS_FILE
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(weights, lambda p: save_file(plain, p))
    write_index(folder / CONFIG_FILE, {"model": as_dict(cfg), **facts, "weights": sha256(weights)})


def read_model_config(folder: str | Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Architecture and facts of a folder written by `save_model`."""
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; a model folder holds {WEIGHTS_FILE} and {CONFIG_FILE}")
    tree = read_index(path, REMEDY)
    return parse(ModelConfig, tree.pop("model", None), f"{path}: model"), tree


def load_model(folder: str | Path, expect: ModelConfig | None = None, device: str = "cpu") -> EMIGM:
    """Load a model for inference.

    Args:
        folder: written by `save_model`.
        expect: the architecture the caller needs; another one in the folder is refused.
        device: where to put it.

    Raises:
        ConfigError: a file is missing, damaged or changed, or holds another architecture or NaN.
    """
    cfg, facts = read_model_config(folder)
    if expect is not None and cfg != expect:
        mine, theirs = as_dict(expect), as_dict(cfg)
        diff = ", ".join(f"{k} = {theirs[k]} (expected {mine[k]})" for k in mine if mine[k] != theirs[k])
        raise ConfigError(f"{folder}: a model of another architecture: {diff}; train this size again")
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; {REMEDY}")
    if sha256(path) != facts.get("weights"):
        raise ConfigError(f"{path}: not the weights that {CONFIG_FILE} beside them names (checksum differs); {REMEDY}")
    state = read_tensors(path)
    with torch.device("meta"):
        model = EMIGM(cfg)
    check_state(state, model, path)
    model.load_state_dict(state, assign=True)
    return model.to(device).eval().requires_grad_(False)
