"""The model of Table 1's systems: patches, backbone and head; its loss; saving and loading.

Shape letters: B images, L tokens, M masked tokens of all images, C token channels, D width, R diffusion
times a token is trained at (`diffusion_batch_mul`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emigm.config.errors import ConfigError
from emigm.config.parsing import as_dict, parse
from emigm.config.schema import ModelConfig, Precision
from emigm.io import read_index, sha256, write_index
from emigm.model import diffusion
from emigm.model.backbone import Backbone
from emigm.model.head import CategoricalHead, DiffusionHead
from emigm.model.precision import HALVES
from emigm.model.weights import check_state, read_tensors, write_tensors

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
REMEDY = "train or import the model again"


class TrainingDraw(NamedTuple):
    """Everything random in one training step of a group of images, so that the loss is a function."""

    counts: np.ndarray  # masked tokens of each image, int (B,), known without asking the device
    rows: Tensor  # the masked tokens as b L + l, ascending, int64 (M,)
    weight: Tensor  # of each image's tokens in the group's loss (B,): w(t) / (R x masked tokens of the whole group)
    dropped: Tensor  # images whose class is dropped, bool (B,)
    # The diffusion head only; with the categorical one R = 0.
    time: Tensor  # diffusion step of every masked token, int64 (R, M)
    noise: Tensor  # (R, M, C)

    def images(self, part: slice, tokens: int) -> TrainingDraw:
        """The draw of some of the images, of L = `tokens` tokens each; losses of parts add up to the group's."""
        first, last = (int(self.counts[:i].sum()) for i in (part.start, part.stop))
        return TrainingDraw(
            self.counts[part],
            self.rows[first:last] - part.start * tokens,
            self.weight[part],
            self.dropped[part],
            self.time[:, first:last],
            self.noise[:, first:last],
        )


class EMIGM(nn.Module):
    """Effective and efficient masked image generation model."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.backbone = Backbone(cfg)
        self.head = DiffusionHead(cfg) if cfg.codebook is None else CategoricalHead(cfg)

    def patchify(self, latents: Tensor) -> Tensor:
        """Unit latents (B, channels, grid, grid) => tokens (B, L, C)."""
        return F.pixel_unshuffle(latents, self.cfg.patch).flatten(2).mT.contiguous()

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Inverse of `patchify`."""
        side = self.cfg.grid // self.cfg.patch
        return F.pixel_shuffle(tokens.mT.unflatten(2, (side, side)), self.cfg.patch)

    def forward(self, latents: Tensor, labels: Tensor, draw: TrainingDraw) -> Tensor:
        """Training loss, a scalar, of unit latents (B, channels, grid, grid), or codes (B, 1, grid, grid), and classes
        (B,): the head's loss of the masked tokens at their R times, weighted by w(t) (Table 1) and averaged over the
        tokens of the draw's group."""
        loss, _ = self.token_losses(latents, labels, draw)
        return (loss * draw.weight[draw.rows // self.cfg.tokens].to(loss.dtype)).sum()

    def token_losses(self, latents: Tensor, labels: Tensor, draw: TrainingDraw) -> tuple[Tensor, Tensor]:
        """(loss, squared error of the noise) of every masked token at every time, each (R, M); with the
        categorical head, its cross-entropy in nats, twice, with R = 1."""
        tokens = self.patchify(latents)
        b, length, _ = tokens.shape
        mask = torch.zeros(b * length, dtype=torch.bool, device=tokens.device).index_fill_(0, draw.rows, True)
        mask = mask.view(b, length)

        # Only masked tokens reach the head, and the last decoder block where they are equally many in every image.
        if self.cfg.mae:
            masked = (draw.rows % length).view(b, -1)
            z = self.condition(tokens, mask, labels, masked.shape[1], draw.dropped, masked).flatten(0, 1)  # (M, D)
        else:
            z = self.condition(tokens, mask, labels, None, draw.dropped).flatten(0, 1)[draw.rows]
        x0 = tokens.flatten(0, 1)[draw.rows]  # (M, C)
        if self.cfg.codebook is not None:
            loss = F.cross_entropy(self.head(z).float(), x0[:, 0], reduction="none")[None]
            return loss, loss
        y = self.head.embed_steps(draw.time) + self.head.cond_embed(z)  # (R, M, W): embedded once for all R times
        x0 = x0.expand(len(draw.time), -1, -1).flatten(0, 1)
        noise, time = draw.noise.flatten(0, 1), draw.time.flatten()
        output = self.head.denoise(diffusion.q_sample(x0, noise, time), y.flatten(0, 1))
        loss, mse = diffusion.denoising_loss(output.to(x0.dtype), x0, noise, time)
        return loss.view_as(draw.time), mse.view_as(draw.time)

    def condition(
        self,
        tokens: Tensor,
        mask: Tensor,
        labels: Tensor,
        n_masked: int | None,
        dropped: Tensor | None = None,
        query: Tensor | None = None,
    ) -> Tensor:
        """z of tokens (B, L, C) under mask (B, L), `n_masked` of each image: (B, L, D), or (B, n, D) of the positions
        `query` (B, n); see `Backbone.forward`."""
        condition = self.backbone.embed_class(labels, dropped)
        n_visible = None if n_masked is None else self.cfg.tokens - n_masked
        return self.backbone(tokens, mask, condition, n_visible, query)


def compile_networks(model: EMIGM) -> None:
    """Have the backbone, and one evaluation of the diffusion head, compiled when they are first called.

    Shapes change with the number of visible tokens; after the second one, torch compiles for any.
    """
    model.backbone.compile()
    if model.cfg.codebook is None:
        model.head.denoise = torch.compile(model.head.denoise)


def cast_linear(model: EMIGM, precision: Precision) -> None:
    """Cast the weights of linear layers, once, to what autocast casts them to at every call: the same results, fewer
    operations, and less memory. Nothing happens for float32 and tf32."""
    for module in model.modules() if precision in HALVES else ():
        if isinstance(module, nn.Linear):
            module.to(HALVES[precision])


def compiled_graphs() -> int:
    """Graphs that this process has compiled, recompilations included."""
    import torch._dynamo.utils  # seconds to import, and only who compiles needs it

    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def save_model(folder: str | Path, state: dict[str, Tensor], cfg: ModelConfig, **facts: Any) -> None:
    """Write `model.safetensors` and `config.json` into `folder`; `facts` (origin, latent scale, ...) go beside
    the architecture, and so does the weights' checksum. The configuration comes last, so a folder whose two files
    agree is whole."""
    folder = Path(folder)
    weights = folder / WEIGHTS_FILE
    write_tensors(weights, state)
    write_index(folder / CONFIG_FILE, {"model": as_dict(cfg), **facts, "weights": sha256(weights)})


def read_model_config(folder: str | Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Architecture and facts of a folder written by `save_model`."""
    path = Path(folder) / CONFIG_FILE
    tree = read_index(path, f"a model folder holds {WEIGHTS_FILE} and {CONFIG_FILE}; {REMEDY}")
    return parse(ModelConfig, tree.pop("model", None), f"{path}: model"), tree


def load_model(folder: str | Path, expect: ModelConfig | None = None, device: str = "cpu") -> EMIGM:
    """Load for inference what `save_model` wrote.

    Raises:
        ConfigError: a file is missing, damaged or changed, or holds NaN or another architecture than the caller needs
            (`expect`).
    """
    cfg, facts = read_model_config(folder)
    if expect is not None and cfg != expect:
        mine, theirs = as_dict(expect), as_dict(cfg)
        diff = ", ".join(f"{k} = {theirs[k]} (expected {mine[k]})" for k in mine if mine[k] != theirs[k])
        raise ConfigError(f"{folder}: a model of another architecture: {diff}; train this size again")
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file() or sha256(path) != facts.get("weights"):
        raise ConfigError(f"{path}: missing, or not the weights that {CONFIG_FILE} names (checksum differs); {REMEDY}")
    state = read_tensors(path)
    with torch.device("meta"):
        model = EMIGM(cfg)
    check_state(state, model, path)
    model.load_state_dict(state, assign=True)
    return model.to(device).eval().requires_grad_(False)
