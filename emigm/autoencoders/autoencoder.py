"""The configured autoencoder. The only file that knows third-party autoencoders: MAR's KL-16 and DC-AE."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from emigm.autoencoders.base import Autoencoder, Pixels
from emigm.autoencoders.codebook import load_kmeans
from emigm.config.errors import ConfigError, check
from emigm.config.paths import expand
from emigm.config.schema import AutoencoderConfig, Precision
from emigm.model.weights import check_state, check_tensors, read_tensors

KL16_CONFIG: dict[str, Any] = {
    # Attention in the lowest level of the encoder, none in the decoder's: with plain levels every latent is wrong.
    "down_block_types": ("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",) * 5,
    "block_out_channels": (128, 128, 256, 256, 512),
    "layers_per_block": 2,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "latent_channels": 16,
}
"""MAR's KL-16, as arguments of diffusers' AutoencoderKL."""

DCAE_CONFIG: dict[str, Any] = {
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (0, 4, 8, 2, 2, 2),
    "decoder_layers_per_block": (0, 5, 10, 2, 2, 2),
    "encoder_qkv_multiscales": ((),) * 6,  # diffusers' defaults are those of another DC-AE
    "decoder_qkv_multiscales": ((),) * 6,
    "downsample_block_type": "pixel_unshuffle",
    "upsample_block_type": "pixel_shuffle",
    "decoder_norm_types": ("batch_norm",) * 3 + ("rms_norm",) * 3,
    "decoder_act_fns": ("relu",) * 3 + ("silu",) * 3,
    "decoder_conv_act_fn": "relu",
    "encoder_out_shortcut": True,
    "decoder_in_shortcut": True,
}
"""DC-AE f32c32-in-1.0, as arguments of diffusers' AutoencoderDC."""

DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"


class Network(Autoencoder):
    """An autoencoder of diffusers: `module` maps images in [-1, 1] to raw latents and back."""

    files: ClassVar[tuple[str, ...]]
    """Usual names of its weights."""
    published: ClassVar[str]
    """What `autoencoder.weights` has to name."""

    def __init__(
        self, module: nn.Module, scale: float, device: str | torch.device = "cpu", precision: Precision = "float32"
    ):
        super().__init__(scale, device, precision)
        # The layout in which GPUs, and CPUs, convolve fastest; what convolutions take and give follows.
        self.module = module.to(memory_format=torch.channels_last)
        for part in module.modules():
            # DC-AE's sums over all positions, which autocast would do in float16; the official one is float32.
            if hasattr(part, "apply_linear_attention"):
                part.apply_linear_attention = _in_float32(part.apply_linear_attention, self.device)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.module.decode(latents).sample


class KL16(Network):
    """MAR's variational autoencoder: raw latents are its posterior, mean and log-variance (B, 32, H/16, W/16)."""

    kind, latent_channels, stride = "kl16", 16, 16
    files, published = ("kl16.ckpt", DIFFUSERS_FILE), "kl16.ckpt as MAR released it"

    def _encode(self, images: Tensor) -> Tensor:
        return self.module.encode(images).latent_dist.parameters  # the log-variance is not clamped yet

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        b, channels, height, width = shape
        return torch.randn(b, channels // 2, height, width, generator=generator, device=generator.device)

    def _draw(self, raw: Tensor, noise: Tensor) -> Tensor:
        mean, logvar = raw.chunk(2, dim=1)
        return mean + (0.5 * logvar.clamp(-30, 20)).exp() * noise.to(raw.device, raw.dtype)


class DCAE(Network):
    """Deep compression autoencoder f32c32: raw latents (B, 32, H/32, W/32) are exact."""

    kind, latent_channels, stride = "dcae", 32, 32
    files, published = ("model.safetensors", DIFFUSERS_FILE), "the folder of dc-ae-f32c32-in-1.0"

    def _encode(self, images: Tensor) -> Tensor:
        return self.module.encode(images).latent


def _in_float32(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """The function of tensors outside autocast."""

    @torch.autocast(device.type, enabled=False)
    def call(*tensors: Tensor) -> Tensor:
        return function(*(t.float() for t in tensors))

    return call


def load_autoencoder(cfg: AutoencoderConfig, device: str | torch.device = "cpu") -> Autoencoder:
    """Build the configured autoencoder; `cfg.weights` is a file, or a folder that holds one under its usual name.

    Raises:
        ConfigError: the weights are missing or damaged, or are those of another model.
    """
    if cfg.kind == "pixels":
        return Pixels(cfg.scale, device)
    if cfg.kind == "kmeans":
        return load_kmeans(cfg, device)
    kind, read = {"kl16": (KL16, _read_kl16), "dcae": (DCAE, _read_dcae)}[cfg.kind]
    try:
        path = expand(cfg.weights)
        if path.is_dir():
            path = next((path / name for name in kind.files if (path / name).is_file()), None)
        check(path is not None, f"{expand(cfg.weights)}: no {' or '.join(kind.files)} in this folder")
        module, state = read(path)
        check_state(state, module, path)
    except ConfigError as e:
        raise ConfigError(f"{e} (autoencoder.weights of kind: {cfg.kind} must name {kind.published})") from e
    # Tensors are converted, not the module: diffusers warns of every conversion of a whole module.
    module.load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in state.items()}, assign=True)
    return kind(module.to(device).eval().requires_grad_(False), cfg.scale, device, cfg.precision)


def weight_files(weights: str | None) -> list[Path]:
    """The files that `autoencoder.weights` names: one, or all of a folder; none where there are no weights."""
    if weights is None:
        return []
    path = expand(weights)
    return sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]


def kl16_official_name(name: str) -> str:
    """Name in `kl16.ckpt` of the tensor that diffusers calls `name`."""
    top = len(KL16_CONFIG["block_out_channels"]) - 1
    rules: list[tuple[str, str | Callable[[re.Match], str]]] = [
        (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d)\.attentions", r"down.\1.attn"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        # The file counts the decoder's levels from the image, diffusers from the latents.
        (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{top - int(m[1])}.block"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{top - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
        (r"group_norm", "norm"),
        (r"to_([qkv])\.", r"\1."),
        (r"to_out\.0", "proj_out"),
    ]
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _read_kl16(path: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network without memory, and its tensors under diffusers' names, from the layout of either."""
    from diffusers import AutoencoderKL  # importing diffusers takes seconds

    with torch.device("meta"):
        module = AutoencoderKL(**KL16_CONFIG)
    state = read_tensors(path, part=None if path.suffix == ".safetensors" else "model")
    if any(name.startswith("encoder.down.") for name in state):  # else diffusers' layout
        parts = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")  # others are the training loss's
        state = {name: tensor for name, tensor in state.items() if name.startswith(parts)}
        # Checked under the file's own names and shapes, so that a message names what the file should have. The only
        # matrices are attention's; the file has them as 1 x 1 convolutions.
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        check_tensors(state, {kl16_official_name(n): (*s, 1, 1) if len(s) == 2 else s for n, s in shapes.items()}, path)
        state = {name: state[kl16_official_name(name)].reshape(shape) for name, shape in shapes.items()}
    return module, state


def _read_dcae(path: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """As `_read_kl16`."""
    from diffusers import AutoencoderDC
    from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers as convert

    with torch.device("meta"):
        module = AutoencoderDC(**DCAE_CONFIG)
    state = read_tensors(path)
    published = any(name.startswith("encoder.stages.") for name in state)  # else diffusers' layout
    return module, convert(state) if published else state
