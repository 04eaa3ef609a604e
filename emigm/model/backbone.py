"""The backbone: visible tokens and a class in, one condition vector z for every token out.

The MAE trick is the asymmetry of encoder and decoder of He et al. 2021 (MAE, arXiv 2111.06377, section 3).

Shape letters: B images, L tokens, V visible tokens, P buffer positions, C token channels, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emigm.config.schema import ModelConfig

LN_EPS = 1e-6


def init_linear(network: nn.Module) -> None:
    """Initial weights and biases of all linear layers of a network."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2); dropout on the weights and on the
    projection while training."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, query: Tensor | None = None) -> Tensor:
        """x (B, m, D) => (B, m, D), or (B, n, D) at the positions `query` (B, n), which see all m."""
        (b, m, d), heads = x.shape, self.heads
        if query is None:
            n = m
            q, k, v = self.qkv(x).view(b, m, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        else:
            n = query.shape[1]
            (w_q, w_kv), (b_q, b_kv) = (t.split([d, 2 * d]) for t in (self.qkv.weight, self.qkv.bias))
            q = F.linear(x.take_along_dim(query[..., None], 1), w_q, b_q).view(b, n, heads, d // heads).transpose(1, 2)
            k, v = F.linear(x, w_kv, b_kv).view(b, m, 2, heads, d // heads).permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        return F.dropout(self.proj(y.transpose(1, 2).reshape(b, n, d)), p, self.training)


class Mlp(nn.Module):
    """Linear, GELU, Linear, with dropout after both while training."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.gelu(self.fc1(x)), self.dropout, self.training)
        return F.dropout(self.fc2(x), self.dropout, self.training)


class Block(nn.Module):
    """Pre-norm transformer block (ViT: Dosovitskiy et al. 2020, arXiv 2010.11929, equations 2 and 3)."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.width, eps=LN_EPS)
        self.attn = Attention(cfg.width, cfg.heads, cfg.dropout)
        self.norm2 = nn.LayerNorm(cfg.width, eps=LN_EPS)
        self.mlp = Mlp(cfg.width, int(cfg.width * cfg.mlp_ratio), cfg.dropout)

    def forward(self, x: Tensor, query: Tensor | None = None) -> Tensor:
        """x (B, m, D) => (B, m, D), or only the positions `query` (B, n) of it: (B, n, D)."""
        kept = x if query is None else x.take_along_dim(query[..., None], 1)
        x = kept + self.attn(self.norm1(x), query)
        return x + self.mlp(self.norm2(x))


def sine_positions(side: int, width: int, std: float) -> Tensor:
    """Sines and cosines of both coordinates of a square of tokens (side^2, D), as in MAE (He et al. 2021, arXiv
    2111.06377); `std` is their root mean square, and a remainder of D = `width` by 4 is left 0.

    The frequencies rise geometrically from half a period over the square to three eighths of a period between
    neighbours.
    """
    frequencies = torch.logspace(math.log10(math.pi / side), math.log10(0.75 * math.pi), width // 4)
    row, column = (c.reshape(-1, 1) * frequencies for c in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    waves = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1)
    return F.pad(waves, (0, width - waves.shape[1])) * std * math.sqrt(2)


class Backbone(nn.Module):
    """Encoder of the visible tokens, decoder of all positions (MAE trick), or both of all (ablation)."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        positions = cfg.buffer + cfg.tokens
        self.class_emb = nn.Embedding(cfg.classes, cfg.width, _weight=torch.empty(cfg.classes, cfg.width))
        # CFG with mask: the class of the unconditional pass is the decoder's mask token, one parameter.
        self.fake_latent = nn.Parameter(torch.empty(1, cfg.width))
        if not cfg.cfg_with_mask:
            self.mask_token = nn.Parameter(torch.empty(1, 1, cfg.width))
        if cfg.codebook is None:
            self.z_proj = nn.Linear(cfg.token_channels, cfg.width)
        else:
            self.z_proj = nn.Embedding(cfg.codebook, cfg.width, _weight=torch.empty(cfg.codebook, cfg.width))
        self.z_proj_ln = nn.LayerNorm(cfg.width, eps=LN_EPS)
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, positions, cfg.width))
        self.encoder_blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.encoder_blocks))
        self.encoder_norm = nn.LayerNorm(cfg.width, eps=LN_EPS)
        self.decoder_embed = nn.Linear(cfg.width, cfg.width)
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, positions, cfg.width))
        self.decoder_blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.decoder_blocks))
        self.decoder_norm = nn.LayerNorm(cfg.width, eps=LN_EPS)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.empty(1, cfg.tokens, cfg.width))
        self._initialise()

    def _initialise(self) -> None:
        if self.fake_latent.is_meta:  # nothing to fill, and a first normal_ there imports modules for seconds
            return
        init_linear(self)
        for name, parameter in self.named_parameters():
            # Embeddings, positions, the fake and mask tokens.
            if name == "class_emb.weight" or "." not in name or (self.cfg.codebook and name == "z_proj.weight"):
                nn.init.normal_(parameter, std=self.cfg.init_std)
        if self.cfg.positions == "sines":
            sines = sine_positions(self.cfg.grid // self.cfg.patch, self.cfg.width, self.cfg.init_std)
            with torch.no_grad():
                for table in ("encoder", "decoder", "diffusion"):
                    getattr(self, f"{table}_pos_embed_learned")[0, -self.cfg.tokens :] = sines

    @property
    def decoder_mask_token(self) -> Tensor:
        """What stands at masked positions (D,)."""
        return (self.fake_latent if self.cfg.cfg_with_mask else self.mask_token).view(-1)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens (B, n, C) => (B, n, D): numbers, or one code each."""
        return self.z_proj(tokens) if self.cfg.codebook is None else self.z_proj(tokens[..., 0])

    def embed_class(self, labels: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Class embeddings (B, D) of labels (B,); the fake one where `dropped` (B,) is true."""
        embedding = self.class_emb(labels)
        return embedding if dropped is None else torch.where(dropped[:, None], self.fake_latent, embedding)

    def forward(
        self, tokens: Tensor, mask: Tensor, condition: Tensor, n_visible: int | None, query: Tensor | None = None
    ) -> Tensor:
        """Condition vectors z (B, L, D), or (B, n, D) of the positions `query`, int64 (B, n), alone.

        Args:
            tokens: (B, L, C), int64 codes where there is a codebook; values at masked positions are never read.
            mask: True where masked, bool (B, L).
            condition: class embeddings (B, D).
            n_visible: unmasked tokens of every image, V, which the MAE trick needs; None: numbers may differ.
        """
        cfg = self.cfg
        buffer = condition[:, None].expand(-1, cfg.buffer, -1)  # (B, P, D)
        buffer_position, position = self.encoder_pos_embed_learned[0].split([cfg.buffer, cfg.tokens])
        if cfg.mae:
            # A stable sort puts the visible positions first, in order, without a host sync.
            visible = mask.to(torch.uint8).argsort(dim=1, stable=True)[:, :n_visible]  # (B, V)
            seen = self.embed_tokens(tokens.take_along_dim(visible[..., None], 1)) + position[visible]
        else:
            seen = self.embed_tokens(tokens) + position
        x = self.z_proj_ln(torch.cat([buffer + buffer_position, seen], dim=1))
        if not cfg.mae:
            hidden = F.pad(mask, (cfg.buffer, 0))[..., None]
            x = torch.where(hidden, self.decoder_mask_token.to(x.dtype), x)
        for block in self.encoder_blocks:
            x = block(x)
        x = self.decoder_embed(self.encoder_norm(x))  # (B, P + V, D), or (B, P + L, D) without the trick

        if cfg.mae:
            b, d = x.shape[0], x.shape[2]
            every = self.decoder_mask_token.to(x.dtype).expand(b, cfg.tokens, d)
            every = every.scatter(1, visible[..., None].expand(-1, -1, d), x[:, cfg.buffer :])
            x = torch.cat([x[:, : cfg.buffer], every], dim=1)
        x = x + self.decoder_pos_embed_learned
        *blocks, last = self.decoder_blocks
        for block in blocks:
            x = block(x)
        if query is None:
            return self.decoder_norm(last(x))[:, cfg.buffer :] + self.diffusion_pos_embed_learned
        return self.decoder_norm(last(x, query + cfg.buffer)) + self.diffusion_pos_embed_learned[0][query]
