"""The paper's nine architectures, its sampling settings (Tables 2 and 3) and what it measures with. No torch."""

from __future__ import annotations

from emigm.config.errors import check
from emigm.config.parsing import known
from emigm.config.schema import ModelConfig, SampleConfig, TrainConfig


def _paper(resolution: int, blocks: int, width: int, heads: int, head_blocks: int, head_width: int) -> ModelConfig:
    return ModelConfig(
        grid=16,
        channels={256: 16, 512: 32}[resolution],
        classes=1000,
        width=width,
        encoder_blocks=blocks,
        decoder_blocks=blocks,
        heads=heads,
        head_width=head_width,
        head_blocks=head_blocks,
    )


PAPER_MODELS: dict[tuple[int, str], ModelConfig] = {
    (256, "xs"): _paper(256, 10, 448, 8, 3, 1024),
    (256, "s"): _paper(256, 12, 512, 8, 3, 1024),
    (256, "b"): _paper(256, 12, 768, 12, 6, 1024),
    (256, "l"): _paper(256, 16, 1024, 16, 8, 1280),
    (256, "h"): _paper(256, 20, 1280, 16, 12, 1536),
    (512, "xs"): _paper(512, 10, 448, 8, 6, 1280),
    (512, "s"): _paper(512, 12, 512, 8, 6, 1280),
    (512, "b"): _paper(512, 12, 768, 12, 8, 1280),
    (512, "l"): _paper(512, 16, 1024, 16, 8, 1280),
}
"""The nine architectures of Tables 2 and 3, by resolution and size."""
PAPER_KEYS = {f"{resolution}-{size}": (resolution, size) for resolution, size in PAPER_MODELS}
"""What the nine are called: "256-l" => (256, "l")."""
PAPER_AUTOENCODERS = {256: ("kl16", 0.2325), 512: ("dcae", 0.3189)}
"""Autoencoder and latent scale of the paper's models, by resolution."""
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the published Inception weights that FID is defined with; their file's name has its first digits."""
IMAGES, EPOCHS = 1_281_167, 800
"""Training images of ImageNet, and how often the paper's models see each, in whole batches."""


def paper_train(size: str) -> TrainConfig:
    """The paper's recipe of a model (Tables 6 and 7, alike at both resolutions): 1e-4 x batch / 256 is the rate."""
    batch = 1024 if size in ("xs", "s") else 2048
    steps = EPOCHS * (IMAGES // batch)
    return TrainConfig(steps, batch, lr=1e-4 * batch / 256, warmup_steps=steps // 8)  # a warm-up of 100 epochs


_PAPER_INTERVALS = {
    (256, 16): ({"h": (0.2, 0.4)}, (0.1, 0.3)),
    (256, 128): ({"b": (0.05, 0.4), "h": (0.3, 0.7)}, (0.18, 0.6)),
    (512, 16): ({}, (0.15, 0.35)),
    (512, 64): ({}, (0.25, 0.5)),
}
"""Guidance intervals of Tables 2 and 3 by (resolution, N): exceptions by size, and the rule."""


def paper_sampling(resolution: int, size: str, steps: int) -> SampleConfig:
    """Sampling settings of the paper's model at one of its two budgets (N = 16, or 128 at 256 and 64 at 512)."""
    known("model", f"{resolution}-{size}", PAPER_KEYS)
    budgets = [n for r, n in _PAPER_INTERVALS if r == resolution]
    check(steps in budgets, f"steps = {steps}: the paper's budgets at {resolution} are {budgets}")
    exceptions, rule = _PAPER_INTERVALS[resolution, steps]
    return SampleConfig(steps, 8 if steps == 16 else 14, cfg_scale=4.0, cfg_interval=exceptions.get(size, rule))
