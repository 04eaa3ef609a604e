"""Generation: every image is a function of (weights, seed, image index), whatever the batch it is made in.

Shape letters: B images, L tokens, n tokens revealed in a step, C token channels, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from emigm.autoencoders.autoencoder import load_autoencoder
from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError, RunError
from emigm.config.schema import Precision, SampleConfig
from emigm.data.samples import Chunks
from emigm.distributed import World
from emigm.io import fingerprint
from emigm.launching import Progress, ahead
from emigm.model.diffusion import Denoiser, ddpm_sample, dpm_solver_plan, dpm_solver_sample, respaced_times
from emigm.model.head import CategoricalHead, DiffusionHead
from emigm.model.model import EMIGM, REMEDY, cast_linear, compile_networks, load_model, read_model_config
from emigm.model.precision import autocast, overflow
from emigm.model.schedules import guidance_scale, guided_steps, step_counts
from emigm.model.weights import upload

COUNTS, IMAGE = 0, 1  # separate random streams of one seed
OnStep = Callable[[Tensor, Tensor], None]
"""Called after every mask-prediction step with the tokens (B, L, C) and which are still masked, bool (B, L). The next
step changes both in place, so whoever keeps them clones them."""


class Batch(NamedTuple):
    """Consecutive images made together."""

    first: int  # index of the first
    latents: Tensor  # unit latents (B, channels, grid, grid)
    passes: int  # forward passes of the backbone for each image


class ImageDraw(NamedTuple):
    """Everything random about a batch of images but the reveal counts."""

    order: Tensor  # order in which positions are revealed, int64 (B, L)
    # (draws, B, L, C). Standard normal for the diffusion head: one draw for DPM-Solver, K for DDPM. Uniform for the
    # categorical one, with C = 1: one draw, or two for every step where the order is by confidence.
    noise: Tensor


def generate(
    model: EMIGM,
    labels: Tensor,
    cfg: SampleConfig,
    *,
    seed: int,
    chunk: int = 250,
    batch: int = 250,
    ranges: Sequence[tuple[int, int]] | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Batch]:
    """Generate images of the classes `labels`, int64 (n,), batch by batch in order; the model is in eval mode.

    On a GPU, a thread draws the random numbers of a batch while the one before is computed.

    Args:
        chunk: images whose indices lie in the same multiple of `chunk` share their reveal counts (the network
            needs equal numbers of visible tokens in a batch). Part of what defines an image.
        batch: images made at once; changes speed and memory only.
        ranges: (start, stop) of the indices to make, if not all.

    Raises:
        ValueError: no images were asked for, or a class does not exist.
        RunError: tokens are not finite, as where the network overflows float16.
    """
    if len(labels) < 1:
        raise ValueError("zero images asked for; ask for at least one")
    if int(labels.min()) < 0 or int(labels.max()) >= model.cfg.classes:
        raise ValueError(f"classes must lie in 0..{model.cfg.classes - 1}, got {labels.unique().tolist()}")
    parts = [part for r in ranges or [(0, len(labels))] for part in batch_ranges(*r, chunk, batch)]
    labels, times = labels.cpu(), embed_times(model.head, cfg)
    draws = ahead(partial(draw_images, model, cfg, seed), parts, threaded=model.backbone.fake_latent.is_cuda)
    for part, draw in zip(parts, draws, strict=True):
        rng = random_stream(seed, COUNTS, part.start // chunk)
        counts = step_counts(cfg.order, cfg.schedule, cfg.steps, model.cfg.tokens, rng)
        tokens, passes = reveal(model, labels[part.start : part.stop], cfg, counts, draw, times, on_step)
        if not tokens.isfinite().all():
            made = f"images {part.start} to {part.stop - 1}"
            raise RunError(overflow(made, cfg.precision, "precision of the sampling settings"))
        yield Batch(part.start, model.unpatchify(tokens), passes)


def batch_ranges(start: int, stop: int, chunk: int, batch: int) -> list[range]:
    """The images start .. stop - 1 in batches that lie in one chunk each."""
    parts = []
    while start < stop:
        end = min(start + batch, (start // chunk + 1) * chunk, stop)
        parts.append(range(start, end))
        start = end
    return parts


def generate_with_steps(model: EMIGM, labels: Tensor, cfg: SampleConfig, **options: Any) -> tuple[Tensor, Tensor]:
    """The unit latents (n, channels, grid, grid) that `generate` makes of the same arguments, and the step from 1 to N
    that revealed each token, int64 (n, L)."""
    masked: list[Tensor] = []
    latents, steps = [], []
    for part in generate(model, labels, cfg, on_step=lambda _, mask: masked.append(mask.clone()), **options):
        latents.append(part.latents)
        steps.append(1 + torch.stack(masked).sum(0))
        masked.clear()
    return torch.cat(latents), torch.cat(steps)


def random_stream(seed: int, purpose: int, index: int) -> np.random.Generator:
    """Independent random numbers for every (seed, purpose, index)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, purpose, index])))


def draw_images(model: EMIGM, cfg: SampleConfig, seed: int, indices: range) -> ImageDraw:
    """The random numbers of the images `indices`, each from its own stream."""
    draws = cfg.solver_steps if cfg.solver == "ddpm" else 2 * cfg.steps if cfg.order == "confidence" else 1
    orders, noises = [], []
    for index in indices:
        rng = random_stream(seed, IMAGE, index)
        orders.append(rng.permutation(model.cfg.tokens))
        draw = rng.random if cfg.solver == "categorical" else rng.standard_normal
        noises.append(draw((draws, model.cfg.tokens, model.cfg.token_channels), dtype=np.float32))
    like = model.backbone.fake_latent
    noise = torch.from_numpy(np.stack(noises, axis=1)).to(like.dtype)
    return ImageDraw(upload(torch.from_numpy(np.stack(orders)), like.device), upload(noise, like.device))


@torch.inference_mode()
def reveal(
    model: EMIGM,
    labels: Tensor,
    cfg: SampleConfig,
    counts: np.ndarray,
    draw: ImageDraw,
    times: Tensor | None,
    on_step: OnStep | None = None,
) -> tuple[Tensor, int]:
    """Reveal all tokens in N steps; returns tokens (B, L, C) and the forward passes each image took.

    `labels` (B,) lie on the CPU; `times` are those of `embed_times`. A GPU is never waited for: nothing here asks it
    for a value, and what goes there goes by `upload`.
    """
    b, length = draw.order.shape
    classes = map(torch.from_numpy, np.unique(labels.numpy(), return_inverse=True))
    labels, *classes = (upload(t, draw.noise.device) for t in (labels, *classes))
    tokens = torch.zeros_like(draw.noise[0], dtype=None if model.cfg.codebook is None else torch.int64)
    mask = torch.ones(b, length, dtype=torch.bool, device=tokens.device)
    guided = guided_steps(cfg.steps, cfg.cfg_scale, cfg.cfg_interval)
    done = passes = 0
    for step, (n, guide) in enumerate(zip(counts.tolist(), guided.tolist(), strict=True)):
        if n == 0:  # the "at least one" rule used up the tokens early
            break
        by_confidence = cfg.order == "confidence"
        if by_confidence:  # all masked positions, (B, L - done): a stable sort puts them first
            query = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, : length - done]
        else:
            query = draw.order[:, done : done + n]  # (B, n)
        with autocast(cfg.precision, tokens.device.type):
            if done:
                condition = partial(model.condition, tokens, mask, labels, length - done, query=query)
                z = [condition(dropped=d).flatten(0, 1) for d in ((None, mask.new_ones(b)) if guide else (None,))]
            else:
                z = [first_condition(model, tokens, mask, *classes, query, drop) for drop in range(1 + guide)]
        noise = draw.noise.take_along_dim(query[None, ..., None], 2).flatten(1, 2)  # (draws, B n, C)
        scale = guidance_scale(cfg.cfg_schedule, cfg.cfg_scale, (done + n) / length)
        if model.cfg.codebook is None:
            new = sample_tokens(model.head, z, noise, cfg, times, scale).view(b, n, -1)
        else:
            logits = guided_logits(model.head, z, scale, cfg.precision)
            new, log_p = sample_codes(logits, noise[step if by_confidence else 0, :, 0])
            new, log_p = new.view(*query.shape, 1), log_p.view(query.shape)
            if by_confidence:
                uniform = noise[cfg.steps + step, :, 0].view(query.shape)
                chosen = most_confident(log_p, uniform, cfg.choice_temperature * (1 - (step + 1) / cfg.steps), n)
                query, new = query.gather(1, chosen), new.take_along_dim(chosen[..., None], 1)
        tokens.scatter_(1, query[..., None].expand_as(new), new)
        mask.scatter_(1, query, False)
        done += n
        passes += len(z)
        if on_step is not None:
            on_step(tokens, mask)
    return tokens, passes


def first_condition(
    model: EMIGM, tokens: Tensor, mask: Tensor, classes: Tensor, image: Tensor, query: Tensor, drop: bool
) -> Tensor:
    """z of the queried positions (B n, D) while nothing is visible: it depends on the class alone, so each of the
    `classes` (k,) is computed once; image (B,) says which is whose."""
    k = len(classes)
    z = model.condition(tokens[:k], mask[:k], classes, tokens.shape[1], mask.new_full((k,), bool(drop)))
    return z[image[:, None], query].flatten(0, 1)


def embed_times(head: DiffusionHead | CategoricalHead, cfg: SampleConfig) -> Tensor | None:
    """Embedded times of all evaluations of the head in one run of the solver (K, W); None of the categorical head,
    which has no solver."""
    if isinstance(head, CategoricalHead):
        return None
    if cfg.solver == "ddpm":
        times = respaced_times(cfg.solver_steps).tolist()
    else:
        times = [step.time for step in dpm_solver_plan(cfg.solver_steps)]
    weight = head.input_proj.weight
    dtype = torch.promote_types(weight.dtype, torch.float32)  # no time fits into half precision
    with torch.no_grad(), autocast(cfg.precision, weight.device.type):
        return head.time_embed(upload(torch.tensor(times, dtype=dtype), weight.device))


def sample_tokens(
    head: DiffusionHead, z: list[Tensor], noise: Tensor, cfg: SampleConfig, times: Tensor, scale: float
) -> Tensor:
    """Tokens (M, C) from their conditions: z = [conditional] or [conditional, unconditional], each (M, D); `times` as
    `embed_times` gives them (K, W), `scale` of guidance."""
    denoiser = guided_denoiser(head, z, times, scale, cfg.precision)
    if cfg.solver == "ddpm":
        temperature = 1.0 if cfg.temperature is None else cfg.temperature
        return ddpm_sample(denoiser, noise, cfg.solver_steps, temperature, cfg.x0_clip)
    return dpm_solver_sample(denoiser, noise[0], dpm_solver_plan(cfg.solver_steps))


def guided_denoiser(
    head: DiffusionHead, z: list[Tensor], times: Tensor, cfg_scale: float, precision: Precision = "float32"
) -> Denoiser:
    """The head as a function of (x, i), i a row of the embedded `times` (K, W); with two conditions eps = eps_u +
    cfg_scale (eps_c - eps_u) (classifier-free guidance, Ho & Salimans 2022, arXiv 2207.12598, equation 6).

    The variance is the conditional one. The head runs in `precision`; its output, and guidance, are x's.
    """
    kind = z[0].device.type
    with autocast(precision, kind):
        condition = head.cond_embed(torch.cat(z))  # embedded once for all solver steps

    def run(x: Tensor, i: int) -> Tensor:
        with autocast(precision, kind):
            return head.denoise(x, times[i] + condition)

    def denoiser(x: Tensor, i: int) -> Tensor:
        if len(z) == 1:
            return run(x, i).to(x.dtype)
        with_class, without = run(torch.cat([x, x]), i).to(x.dtype).chunk(2)
        eps_c, variance = with_class.chunk(2, dim=-1)
        eps_u, _ = without.chunk(2, dim=-1)
        return torch.cat([eps_u + cfg_scale * (eps_c - eps_u), variance], dim=-1)

    return denoiser


def guided_logits(head: CategoricalHead, z: list[Tensor], cfg_scale: float, precision: Precision) -> Tensor:
    """Logits (M, V); with two conditions, logits_u + cfg_scale (logits_c - logits_u)."""
    with autocast(precision, z[0].device.type):
        logits = head(torch.cat(z)).float().chunk(len(z))
    return logits[0] if len(z) == 1 else logits[1] + cfg_scale * (logits[0] - logits[1])


def sample_codes(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Codes drawn from logits (M, V) with uniform numbers (M,), and their log probabilities: int64 (M,), (M,)."""
    log_p = logits.log_softmax(-1)
    below = log_p.exp().cumsum(-1)
    # Scaled, since a rounded sum just under 1 could leave the last number beyond every code.
    codes = (below <= uniform[:, None] * below[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)
    return codes, log_p.gather(1, codes[:, None])[:, 0]


def most_confident(log_p: Tensor, uniform: Tensor, temperature: float, n: int) -> Tensor:
    """Which n of the tokens MaskGIT keeps: the greatest log p + temperature x Gumbel noise (Chang et al. 2022, arXiv
    2202.04200, section 3.2 and its code).

    log_p and uniform (B, m) => indices (B, n).
    """
    gumbel = -(-uniform.clamp(1e-9, 1 - 1e-7).log()).log()
    return (log_p + temperature * gumbel).topk(n, dim=1).indices


class Sampler:
    """Makes the images of one training seed's weights (a model folder), chunk by chunk; `size` is that of the model.

    Raises:
        ConfigError: the model is missing, damaged, or another than the benchmark says.
    """

    def __init__(self, benchmark: Benchmark, size: str, weights: Path, cfg: SampleConfig, train_seed: int, device: str):
        _, self.facts = read_model_config(weights)
        for name, value in {"seed": train_seed, "autoencoder": benchmark.autoencoder.space}.items():
            if self.facts.get(name, value) != value:
                raise ConfigError(f"{weights}: a model of {name} {self.facts[name]}, expected {value}; {REMEDY}")
        self.model = load_model(weights, expect=benchmark.model_config(size), device=device)
        cast_linear(self.model, cfg.precision)
        if benchmark.run.compile:
            compile_networks(self.model)
        self.autoencoder = load_autoencoder(benchmark.autoencoder, device)
        self.cfg, self.train_seed, self.run = cfg, train_seed, benchmark.run
        self.chunk = benchmark.evaluation.chunk
        self.key = fingerprint(self.facts["weights"], str(cfg), str(benchmark.autoencoder), self.chunk, train_seed)

    def options(self, index: int) -> dict[str, int]:
        """Arguments of `generate` for the images of the `index` of evaluation.seeds.

        Conditions that share a training seed share the seed of sampling too, so that comparisons are paired. Models of
        different training seeds have noise of their own: their spread is that of independent repetitions.
        """
        return {"seed": 1000 * self.train_seed + index, "chunk": self.chunk, "batch": self.run.sample_batch}

    def decode(self, latents: Tensor) -> np.ndarray:
        """Unit latents (n, channels, grid, grid) => pixels, uint8 (n, c, h, w)."""
        return self.autoencoder.decode(latents, self.run.encode_batch).cpu().numpy()

    def chunks(self, index: int, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
        """Pixels uint8 (n, c, h, w), labels int64 (n,), and forward passes an image, of each of the chunks
        (start, stop) of the images of the `index` of evaluation.seeds."""
        labels = balanced_labels(max(stop for _, stop in ranges), self.model.cfg.classes)
        batches = generate(self.model, labels, self.cfg, ranges=ranges, **self.options(index))
        for start, stop in ranges:
            parts = list(islice(batches, len(batch_ranges(start, stop, self.chunk, self.run.sample_batch))))
            pixels = self.decode(torch.cat([part.latents for part in parts]))
            yield pixels, labels[start:stop].numpy(), parts[0].passes

    def write(self, index: int, images: int, folder: Path, world: World, progress: Progress) -> Chunks:
        """Write this process's chunks of the images 0 .. `images` - 1 of the `index` of evaluation.seeds, without those
        that an earlier run finished; returns all processes' chunks, in the working `folder`."""
        chunks = Chunks(folder, images, self.chunk, f"{self.key}-{index}")
        mine = world.share(len(chunks.ranges))
        missing = chunks.missing(mine)
        done = images * (len(mine) - len(missing)) // max(1, len(mine))
        progress(done)
        made, written = self.chunks(index, [chunks.ranges[i] for i in missing]), None
        with ThreadPoolExecutor(1) as thread:  # writes a chunk while the next one is made
            for n, i in enumerate(missing, 1):
                start = time.perf_counter()
                pixels, labels, passes = next(made)
                seconds = time.perf_counter() - start
                if written is not None:
                    written.result()
                written = thread.submit(chunks.write, i, pixels, labels, seconds=seconds, passes=passes)
                progress(done + (images - done) * n // len(missing))
            if written is not None:
                written.result()
        return chunks


def balanced_labels(images: int, classes: int) -> Tensor:
    """Classes in turn, so that every run of images is balanced, int64 (images,)."""
    return torch.arange(images) % classes
