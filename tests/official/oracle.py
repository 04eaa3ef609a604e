"""The official code (github.com/ML-GSAI/eMIGM) run beside ours: imported from a clone the user names.

It draws as it always does; what it draws is kept, and put in the form ours takes. Shape letters: B images, L tokens, M
masked tokens, n tokens revealed in a step, C token channels, R diffusion times of a token, K solver steps.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import importlib
import importlib.util
import io
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from emigm import sample as sampling
from emigm.config.errors import ConfigError
from emigm.config.schema import ModelConfig, SampleConfig, TrainConfig
from emigm.model import diffusion, schedules
from emigm.model.checkpoints import to_official
from emigm.model.head import DiffusionHead
from emigm.model.model import EMIGM
from emigm.train import TrainingDraw

MODULES = ("models.emigm", "models.diffloss", "models.dpm_solver", "util.misc", "engine_emigm")
PACKAGES = {name.split(".")[0] for name in MODULES} | {"diffusion"}

Calls = dict[str, list[tuple[tuple, Any]]]
"""(arguments, result) of every call of a function, by the function's name."""


@contextlib.contextmanager
def official_code(folder: str | Path, device: str = "cpu") -> Iterator[SimpleNamespace]:
    """The official modules (`.emigm`, `.diffloss`, `.misc`, ...), usable while the block runs: on a GPU as they are,
    on the CPU with stand-ins for what asks for a GPU. Raises ConfigError where the folder is no clone of the official
    code, or a package it needs is missing."""
    folder = Path(folder).resolve()
    if not (folder / "models" / "emigm.py").is_file():
        raise ConfigError(f"{folder}: no models/emigm.py here; give a clone of github.com/ML-GSAI/eMIGM")
    if importlib.util.find_spec("timm") is None:
        raise ConfigError("the official code needs the package timm; install it beside emigm (pip install timm)")

    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:  # others of these everyday names
        del sys.modules[name]
    sys.modules.setdefault("cv2", types.ModuleType("cv2"))  # imported there, and not called here
    linspace = torch.linspace
    on_cpu = {
        (torch.Tensor, "cuda"): lambda self, *args, **kwargs: self,
        (torch, "linspace"): lambda *args, **kwargs: linspace(*args, **{**kwargs, "device": "cpu"}),
        (torch.cuda, "synchronize"): lambda: None,
        (torch.cuda, "is_available"): lambda: False,
        (torch.cuda.amp, "autocast"): contextlib.nullcontext,
        (torch.cuda.amp, "GradScaler"): functools.partial(torch.amp.GradScaler, "cpu", enabled=False),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(mock.patch.object(sys, "path", [str(folder), *sys.path]))
        for (owner, name), value in on_cpu.items() if device == "cpu" else ():
            stack.enter_context(mock.patch.object(owner, name, value))
        try:
            modules = {name.split(".")[-1]: importlib.import_module(name) for name in MODULES}
        except ImportError as e:
            raise ConfigError(f"{folder}: the official code does not import ({e})") from e
        yield SimpleNamespace(**modules)


@contextlib.contextmanager
def in_float64(code: SimpleNamespace) -> Iterator[None]:
    """float64 by default, and in place of every cast to float32, in both codes. As it stands the official head cannot
    run in float64 (its time features are float32), and its diffusion and solver tables are rounded to float32."""
    schedule = functools.partial(code.dpm_solver.NoiseScheduleVP, dtype=torch.float64)
    plan = functools.partial(diffusion.dpm_solver_plan, dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
            mock.patch.object(code.dpm_solver, "NoiseScheduleVP", schedule),
            mock.patch.object(sampling, "dpm_solver_plan", plan),
        ):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def watch(owner: Any, *names: str) -> Iterator[Calls]:
    """Keep the calls of owner.name, which go on as ever."""
    calls: Calls = {name: [] for name in names}

    def call(name: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        calls[name].append((args, result))
        return result

    with contextlib.ExitStack() as stack:
        for name in names:
            watched = functools.partial(call, name, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, watched))
        yield calls


def build(code: SimpleNamespace, cfg: ModelConfig, make: Callable | None = None, **options: Any) -> nn.Module:
    """The official model of an architecture; `make` is one of its size functions, which fix the transformer."""
    if make is None:
        for side, blocks in (("encoder", cfg.encoder_blocks), ("decoder", cfg.decoder_blocks)):
            options |= {f"{side}_embed_dim": cfg.width, f"{side}_num_heads": cfg.heads, f"{side}_depth": blocks}
        options |= {"norm_layer": functools.partial(nn.LayerNorm, eps=1e-6), "mlp_ratio": cfg.mlp_ratio}
    return (make or code.emigm.eMIGM)(
        img_size=cfg.grid, vae_stride=1, patch_size=cfg.patch, vae_embed_dim=cfg.channels, class_num=cfg.classes,
        attn_dropout=cfg.dropout, proj_dropout=cfg.dropout, buffer_size=cfg.buffer,
        diffloss_d=cfg.head_blocks, diffloss_w=cfg.head_width, use_mae=cfg.mae, use_unsup_cfg=cfg.cfg_with_mask,
        **{"mask_strategy": "exp", **options},
    )  # fmt: skip


def sampling_options(cfg: SampleConfig) -> dict[str, Any]:
    """What `build` has to know of how the model will sample."""
    low, high = cfg.cfg_interval
    options = {"num_sampling_steps": str(cfg.solver_steps), "sampling_algo": cfg.solver}
    return options | {"cfg_t_min": low, "cfg_t_max": high, "mask_strategy": cfg.schedule}


def pair(code: SimpleNamespace, cfg: ModelConfig, seed: int, **options: Any) -> tuple[EMIGM, nn.Module]:
    """Our model and the official one with the same weights, in eval mode: random and perturbed, so that no layer is
    the identity."""
    torch.manual_seed(seed)
    ours = EMIGM(cfg)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    theirs = build(code, cfg, **options)
    theirs.load_state_dict(to_official(ours.state_dict(), cfg))
    return ours.eval(), theirs.eval()


def without_networks(code: SimpleNamespace, cfg: ModelConfig, **options: Any) -> tuple[nn.Module, list[int], list[int]]:
    """The official model with its networks taken out, so that its sampling loop runs fast; a list that grows by the
    rows of every pass of the network, and one that grows by the tokens of every call of the head."""
    model, passes, counts = build(code, cfg, **options), [], []

    def sample(z: Tensor, *_: float) -> Tensor:
        counts.append(len(z))
        return torch.zeros(len(z), cfg.token_channels)

    model.forward_mae_encoder = lambda tokens, *_: passes.append(len(tokens))
    model.forward_mae_decoder = lambda _, mask: torch.zeros(*mask.shape, 1)
    model.diffloss.sample = sample
    return model, passes, counts


def fixed_masking(theirs: nn.Module, masked: int) -> Callable[[Tensor], tuple]:
    """In place of the official `random_masking`: masks `masked` random tokens of each image."""
    draw = theirs.random_masking

    def mask(tokens: Tensor) -> tuple:
        drawn, *rest = draw(tokens)
        rank = torch.rand(drawn.shape, device=drawn.device).argsort(dim=1).argsort(dim=1)
        return ((rank < masked).to(drawn.dtype), *rest)

    return mask


def loss_and_draw(theirs: nn.Module, cfg: ModelConfig, latents: Tensor, labels: Tensor) -> tuple[Tensor, TrainingDraw]:
    """The official training loss of unit latents (B, channels, grid, grid), and what was drawn for it."""
    with watch(torch, "rand", "randint", "randn_like") as drawn, watch(theirs, "random_masking") as masks:
        loss = theirs.train()(latents, labels)
    (draw,) = _training_draws(theirs, cfg, len(labels), drawn | masks)
    return loss, draw


def trainer(
    code: SimpleNamespace, theirs: nn.Module, cfg: TrainConfig, epoch: int, device: str = "cpu"
) -> tuple[Callable[[list[tuple[Tensor, Tensor]]], None], list[Tensor]]:
    """What trains the official model for an epoch, of `epoch` batches of (unit latents, labels), without what it
    prints; and its EMA weights in the order of its parameters."""
    recipe = SimpleNamespace(
        lr=cfg.lr, min_lr=0.0, lr_schedule=cfg.lr_schedule, warmup_epochs=cfg.warmup_steps / epoch, epochs=1,
        grad_clip=cfg.grad_clip, ema_rate=cfg.ema, use_dc_ae=True,  # the batches are latents as they are
    )  # fmt: skip
    parameters = list(theirs.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(code.misc.add_weight_decay(theirs, cfg.weight_decay), cfg.lr, cfg.betas)
    scaler, train = code.misc.NativeScalerWithGradNormCount(), code.engine_emigm.train_one_epoch

    def run(batches: list[tuple[Tensor, Tensor]]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            train(theirs, None, parameters, average, batches, optimizer, device, 0, scaler, args=recipe)

    return run, average


def train_epoch(
    code: SimpleNamespace, theirs: nn.Module, model: ModelConfig, cfg: TrainConfig, batches: list[tuple]
) -> tuple[list[Tensor], list[TrainingDraw], list[float]]:
    """Train the official model for an epoch of `batches`, (unit latents, labels) each. Returns EMA weights in the order
    of its parameters, the draws, and the gradients' norms before the clip."""
    run, average = trainer(code, theirs, cfg, len(batches))
    with (
        watch(torch, "rand", "randint", "randn_like") as drawn,
        watch(theirs, "random_masking") as masks,
        watch(torch.nn.utils, "clip_grad_norm_") as clips,
    ):
        run(batches)
    norms = [norm.item() for _, norm in clips["clip_grad_norm_"]]
    return average, _training_draws(theirs, model, cfg.batch, drawn | masks), norms


def _training_draws(theirs: nn.Module, cfg: ModelConfig, batch: int, calls: Calls) -> list[TrainingDraw]:
    """Every step's draw. The official code draws for all L tokens, ours for the masked ones."""
    uniforms = [result for _, result in calls["rand"] if result.shape == (batch,)]  # those of the class dropout
    steps = zip(calls["random_masking"], uniforms, calls["randint"], calls["randn_like"], strict=True)
    every, draws = (theirs.diffusion_batch_mul, batch, cfg.tokens), []  # (R, B, L)
    for (_, (mask, t, schedule)), uniform, (_, time), (_, noise) in steps:
        masked = mask.nonzero()[:, 1].view(batch, -1)
        time = time.view(every).gather(2, masked.expand(every[0], -1, -1))  # (R, B, m)
        noise = noise.view(*every, -1).take_along_dim(masked[None, ..., None], 2)
        weight = float(schedules.elbo_weight(schedule, t[0, 0].item())) if theirs.use_weighted_loss else 1.0
        draws.append(draw_of(cfg.tokens, masked, uniform < theirs.label_drop_prob, time, noise, weight))
    return draws


def draw_of(
    tokens: int, masked: Tensor, dropped: Tensor, time: Tensor, noise: Tensor, weight: float = 1.0
) -> TrainingDraw:
    """A draw of L = `tokens` in the form ours takes: masked (B, m), positions of each image's masked tokens; dropped
    (B,); time (R, B, m); noise (R, B, m, C); `weight` of the mean loss."""
    (b, m), rows = masked.shape, (masked + tokens * torch.arange(len(masked))[:, None]).flatten()
    weights = torch.full((b,), weight / (len(time) * b * m), dtype=torch.float64)
    return TrainingDraw(np.full(b, m), rows, weights, dropped, time=time.flatten(1), noise=noise.flatten(1, 2))


@torch.no_grad()
def solve(code: SimpleNamespace, head: DiffusionHead, z: list[Tensor], cfg: SampleConfig) -> tuple[Tensor, Tensor]:
    """Tokens (M, C) the official solvers make with the weights of `head`, and the noise they drew (K or 1, M, C); z:
    [conditional] or [conditional, unconditional], each (M, D)."""
    rows, width = z[0].shape
    theirs = code.diffloss.DiffLoss(
        target_channels=head.input_proj.in_features, z_channels=width, depth=len(head.res_blocks),
        width=head.cond_embed.out_features, num_sampling_steps=str(cfg.solver_steps), sampling_algo=cfg.solver,
    ).to(z[0].dtype)  # fmt: skip
    theirs.net.load_state_dict(head.state_dict())
    with watch(torch, "randn", "randn_like") as drawn:
        tokens = theirs.sample(torch.cat(z), 1.0 if cfg.temperature is None else cfg.temperature, cfg.cfg_scale)
    # Its DDPM draws once more, after the last step, and multiplies by 0; with guidance it solves every row twice.
    noise = torch.stack([drawn["randn"][0][1], *(result[:rows] for _, result in drawn["randn_like"][:-1])])
    return tokens[:rows], noise


@torch.no_grad()
def generate(
    theirs: nn.Module, labels: Tensor, model: ModelConfig, cfg: SampleConfig
) -> tuple[Tensor, np.ndarray, sampling.ImageDraw]:
    """Unit latents (B, channels, grid, grid) of the official sampler, its reveal counts (N,) and its draws."""
    batch, temperature = len(labels), 1.0 if cfg.temperature is None else cfg.temperature
    with watch(torch, "randn", "randn_like") as drawn, watch(theirs, "forward_mae_encoder") as passes:
        latents = theirs.sample_tokens(batch, cfg.steps, cfg.cfg_scale, cfg.cfg_schedule, labels, temperature)

    masks = [args[1][:batch].bool() for args, _ in passes["forward_mae_encoder"]]  # rows of guidance come after
    revealed = [a & ~b for a, b in zip(masks, [*masks[1:], torch.zeros_like(masks[0])], strict=True)]
    order = torch.cat([r.nonzero()[:, 1].view(batch, -1) for r in revealed], dim=1)
    draws = cfg.solver_steps if cfg.solver == "ddpm" else 1
    noise = torch.zeros(draws, *order.shape, model.token_channels)
    for i, r in enumerate(revealed):  # the official rows are in the order of indexing by a mask
        noise[0, r] = drawn["randn"][i][1]
        for k in range(1, draws):
            noise[k, r] = drawn["randn_like"][i * draws + k - 1][1][: int(r.sum())]
    return latents, np.array([int(r[0].sum()) for r in revealed]), sampling.ImageDraw(order, noise)


def save_checkpoint(
    code: SimpleNamespace, theirs: nn.Module, average: list[Tensor], folder: Path
) -> tuple[Path, nn.Module]:
    """A checkpoint of the official model and its EMA weights as the official code saves it, and the model that the
    official evaluation makes of that file."""
    args = argparse.Namespace(output_dir=str(folder), lr=1e-3)
    optimizer, scaler = torch.optim.AdamW(theirs.parameters()), code.misc.NativeScalerWithGradNormCount()
    code.misc.save_model(args, 3, theirs, theirs, optimizer, scaler, ema_params=average, epoch_name="last")
    path = folder / "checkpoint-last.pth"

    # What its script does to resume and then to switch to EMA weights, which is part of longer functions there.
    with torch.serialization.safe_globals([argparse.Namespace]):
        tree = torch.load(path, weights_only=True)
    evaluated = copy.deepcopy(theirs)
    evaluated.load_state_dict(tree["model"])
    state = copy.deepcopy(evaluated.state_dict())
    state.update({name: tree["model_ema"][name] for name, _ in evaluated.named_parameters()})
    evaluated.load_state_dict(state)
    return path, evaluated.eval()
