"""`emigm bench`: how fast sampling, training, decoding, encoding, the reading of latents and scoring are, with random
weights.

Each as a share of the rate of matrix products that the device reaches, and, where a clone of the official code is
given, as a ratio to it: both run in turn in one process, each in several precisions, and the best of either counts.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import io
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.datasets import ImagesPathDataset
from torch_fidelity.utils import get_featuresdict_from_dataset

from benchmarks.speed.timing import Variant, matrix_rate, measure
from emigm.autoencoders.autoencoder import DCAE, DCAE_CONFIG, KL16, KL16_CONFIG, Autoencoder, Pixels
from emigm.config.schema import ExtractorConfig, ModelConfig, Precision, SampleConfig, TrainConfig
from emigm.data.latents import LatentStore, Shards
from emigm.distributed import World
from emigm.flops import group_step
from emigm.flops import sampling as sampling_flops
from emigm.io import write_json
from emigm.metrics.features import load_extractor, write_source
from emigm.model.checkpoints import to_official
from emigm.model.model import EMIGM, cast_linear, compile_networks, compiled_graphs
from emigm.model.precision import autocast, products
from emigm.model.weights import upload
from emigm.paper.settings import PAPER_MODELS, paper_sampling
from emigm.records.record import SCHEMA, provenance
from emigm.sample import generate
from emigm.tools.fetch import MAKE_RANDOM
from emigm.train import TrainState, draw_training, group_generators, train_step
from tests.official import oracle

OURS: dict[str, tuple[Precision, ...]] = {"cpu": ("float32", "bf16"), "cuda": ("tf32", "float16", "bf16")}
OFFICIAL: dict[str, tuple[Precision, ...]] = {"cpu": ("float32", "bf16"), "cuda": ("float16",)}
"""Precisions that are tried, by device; the official code fixes float16 on a GPU, which it is written for."""
STORED, SCORED = 512, 64
"""Images whose latents are written to be read, and how many the extractor takes at once."""
AUTOENCODER_FLOPS = {"kl16": (137.9e9, 250.1e9, 256), "dcae": (2085e9, 2770e9, 512)}
"""Of encoding and of decoding one image, as counted by torch, and at which resolution."""
INCEPTION_FLOPS = 11.4e9
"""Of one image, counted at the 299 x 299 pixels it is resized to."""
Run = Callable[[], object]


@dataclass
class Subject:
    """One of the paper's models with random weights, and its autoencoder."""

    name: str  # such as "256-xs"
    device: str  # "cpu" or "cuda"
    cfg: ModelConfig
    sample: SampleConfig
    autoencoder: Callable[[Precision], Autoencoder]
    resolution: int
    code: SimpleNamespace | None = None  # the official modules (`oracle.official_code`)
    batch: int | None = None  # images at once, for all items; None: as `ITEMS` says
    compiled: bool = False  # whether torch.compile compiles our networks

    def __post_init__(self):
        self.kind = {256: "kl16", 512: "dcae"}[int(self.name.split("-")[0])]
        torch.manual_seed(0)
        self.model = EMIGM(self.cfg).to(self.device).eval()
        with torch.no_grad():  # the head starts at zero, which no network is left at
            for parameter in self.model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)

    def official_model(self) -> nn.Module:
        """The official model of the same weights."""
        theirs = oracle.build(self.code, self.cfg, **oracle.sampling_options(self.sample))
        theirs.load_state_dict(to_official(self.model.state_dict(), self.cfg))
        return theirs.to(self.device)

    def official_autoencoder(self) -> nn.Module | None:
        """The official KL-16; DC-AE it imports."""
        kind = importlib.import_module("models.vae").AutoencoderKL
        return kind(embed_dim=16, ch_mult=(1, 1, 2, 2, 4)).to(self.device).eval() if self.kind == "kl16" else None

    def autoencoder_flops(self) -> tuple[float, float]:
        """Of encoding and of decoding an image."""
        encode, decode, side = AUTOENCODER_FLOPS[self.kind]
        return encode * (self.resolution / side) ** 2, decode * (self.resolution / side) ** 2


def paper_subject(name: str, device: str, **options: Any) -> Subject:
    """One of the paper's nine, such as "256-xs", with its autoencoder."""
    import diffusers  # takes seconds

    resolution, size = name.split("-")
    torch.manual_seed(0)
    make, config, wrapper, scale = {
        "256": (diffusers.AutoencoderKL, KL16_CONFIG, KL16, 0.2325),
        "512": (diffusers.AutoencoderDC, DCAE_CONFIG, DCAE, 0.3189),
    }[resolution]
    module = make(**config).to(device).eval().requires_grad_(False)
    key = (int(resolution), size)
    autoencoder = partial(wrapper, module, scale, device)
    return Subject(name, device, PAPER_MODELS[key], paper_sampling(*key, 16), autoencoder, key[0], **options)


class Work(NamedTuple):
    """What is measured: a batch of one item."""

    ours: Callable[[Precision], Run]
    official: Callable[[], Run | None]  # None: the official code has nothing of the kind
    flops: float | None  # of the batch; None: no matrix products


def sampling(s: Subject, batch: int, _: Path) -> Work:
    """Generate latents."""
    labels = torch.arange(batch) % s.cfg.classes

    def ours(precision: Precision) -> Run:
        model, cfg = copy.deepcopy(s.model), dataclasses.replace(s.sample, precision=precision)
        cast_linear(model, precision)
        if s.compiled:
            compile_networks(model)
        return lambda: list(generate(model, labels, cfg, seed=0))

    def official() -> Run:
        model, there = s.official_model().eval(), labels.to(s.device)
        run = torch.no_grad()(model.sample_tokens)
        return lambda: run(batch, s.sample.steps, s.sample.cfg_scale, labels=there)

    return Work(ours, official, batch * sampling_flops(s.cfg, s.sample))


def without_head(s: Subject, batch: int, folder: Path) -> Work:
    """Generate latents by the transformer alone, whose forward passes are what NFE counts; tokens are noise."""
    work = sampling(s, batch, folder)

    def ours(precision: Precision) -> Run:
        run = work.ours(precision)
        return mock.patch("emigm.sample.sample_tokens", lambda head, z, noise, *_: noise[0])(lambda: run())

    return Work(ours, lambda: None, None)


def random_training(
    cfg: ModelConfig, recipe: TrainConfig, device: str = "cpu", compiled: bool = False
) -> Callable[[int], object]:
    """A function that takes one optimizer step, of the given number, on random latents."""
    torch.manual_seed(0)
    latents, labels = torch.randn(recipe.batch, cfg.channels, cfg.grid, cfg.grid), torch.arange(recipe.batch)
    state, world = TrainState.initial(cfg, recipe, 0, World(0, 1, device), compiled), World(0, 1, device)

    def step(number: int) -> None:
        there = upload(latents, device), upload(labels % cfg.classes, device)
        train_step(state, recipe, Pixels(1.0), *there, number, 0, world)

    return step


def training(s: Subject, batch: int, _: Path) -> Work:
    """Take an optimizer step that masks as many tokens as the mean step does."""
    recipe = TrainConfig(10**6, batch, 1e-5, mask_group=batch)
    counts = [draw_training(s.cfg, recipe, batch, *group_generators(0, n, 0, s.device)).counts for n in range(50)]
    firsts = [int(count[0]) for count in counts]
    chosen = int(np.argsort(np.abs(firsts - np.mean(firsts)), kind="stable")[0])
    masked = int(counts[chosen].sum())

    def ours(precision: Precision) -> Run:
        step = random_training(s.cfg, dataclasses.replace(recipe, precision=precision), s.device, s.compiled)
        return lambda: step(chosen)

    def official() -> Run:
        theirs = s.official_model().train()
        theirs.random_masking = oracle.fixed_masking(theirs, masked // batch)
        train, _ = oracle.trainer(s.code, theirs, recipe, 1, s.device)
        latents = torch.randn(batch, s.cfg.channels, s.cfg.grid, s.cfg.grid, generator=torch.Generator().manual_seed(0))
        return lambda: train([(latents, torch.arange(batch) % s.cfg.classes)])

    return Work(ours, official, group_step(s.cfg, recipe, batch, masked))


def decoding(s: Subject, batch: int, _: Path) -> Work:
    """Turn latents into images, ours to 8 bits and checked for NaN."""
    torch.manual_seed(0)
    plain = s.autoencoder("float32")
    side = s.resolution // plain.stride
    unit = torch.randn(batch, plain.latent_channels, side, side, device=s.device)

    def ours(precision: Precision) -> Run:
        autoencoder = s.autoencoder(precision)
        return lambda: autoencoder.decode(unit, batch)

    def official() -> Run | None:
        theirs = s.official_autoencoder()
        return theirs and torch.no_grad()(lambda: theirs.decode(unit / plain.scale))

    return Work(ours, official, batch * s.autoencoder_flops()[1])


def encoding(s: Subject, batch: int, _: Path) -> Work:
    """Turn images into raw latents."""
    pixels = torch.randint(256, (batch, 3, s.resolution, s.resolution), dtype=torch.uint8)

    def ours(precision: Precision) -> Run:
        autoencoder = s.autoencoder(precision)
        return lambda: autoencoder.encode(pixels, batch)

    def official() -> Run | None:
        theirs, images = s.official_autoencoder(), pixels.float() / 127.5 - 1
        return theirs and torch.no_grad()(lambda: theirs.encode(images.to(s.device)).parameters.cpu())

    return Work(ours, official, batch * s.autoencoder_flops()[0])


def reading(s: Subject, batch: int, folder: Path) -> Work:
    """Read the raw latents of random images, of whose flips one or the other is taken."""
    rng, channels = np.random.default_rng(0), s.cfg.channels * (2 if s.kind == "kl16" else 1)
    latents = rng.standard_normal((STORED, 2, channels, s.cfg.grid, s.cfg.grid), dtype=np.float32)

    def ours(_: Precision) -> Run:
        shards = Shards(folder / "shards", STORED, "bench")
        for i, rows in enumerate(shards.ranges):
            shards.write(i, latents[rows.start : rows.stop])
        shards.finish(np.zeros(STORED, dtype=np.int64), {})
        shards.move(folder / "ours")
        rows = LatentStore(folder / "ours").rows
        return lambda: torch.from_numpy(rows(rng.integers(STORED, size=batch), rng.integers(2, size=batch)))

    def official() -> Run:
        files = [folder / f"{i}.npz" for i in range(STORED)]
        for file, (plain, flipped) in zip(files, latents, strict=True):
            np.savez(file, moments=plain, moments_flip=flipped)
        loader = importlib.import_module("util.loader").CachedFolder
        theirs = loader.__new__(loader)  # its constructor starts 48 processes to list the files
        theirs.samples = [(str(file), 0) for file in files]
        return lambda: torch.stack([torch.from_numpy(theirs[i][0]) for i in rng.integers(STORED, size=batch)])

    return Work(ours, official, None)


def scoring(s: Subject, batch: int, folder: Path) -> Work:
    """Inception's features and logits of images, once, in float32.

    The official evaluation has torch-fidelity do so, of files: the same here, without its loading of weights.
    """
    import_module(MAKE_RANDOM).write_inception(folder / "inception.pth")
    write_source(folder / "extractor", folder / "inception.pth")
    cfg = ExtractorConfig("inception", weights=str(folder / "inception.pth"))
    with products("float32", s.device):  # gives back the switches that an extractor sets for good
        extract = load_extractor(cfg, folder / "extractor", s.device, SCORED, clean=False)
    pixels = np.random.default_rng(0).integers(256, size=(batch, 3, s.resolution, s.resolution), dtype=np.uint8)

    def ours(precision: Precision) -> Run:
        return products(precision, s.device)(lambda: extract(pixels))

    def official() -> Run:
        files, cuda = [folder / f"{i}.png" for i in range(batch)], s.device != "cpu"
        for file, image in zip(files, pixels, strict=True):
            Image.fromarray(image.transpose(1, 2, 0)).save(file)
        # On a CPU no processes that read files: their time is not this process's.
        options = {"cuda": cuda, "save_cpu_ram": not cuda, "verbose": False}
        as_pytorch_has_it = torch.backends.cudnn.flags(enabled=True, allow_tf32=True)
        run = partial(get_featuresdict_from_dataset, ImagesPathDataset(files), extract.network, SCORED, **options)
        return as_pytorch_has_it(run)

    return Work(ours, official, batch * INCEPTION_FLOPS)


class Item(NamedTuple):
    """What is measured, and how many images at once."""

    work: Callable[[Subject, int, Path], Work]
    cpu: int
    cuda: int = 64
    official: dict[str, Precision] | None = None  # of an item in float32 alone: the official code's, by device


ITEMS = {
    "sampling": Item(sampling, 1),
    "sampling without head": Item(without_head, 1),
    "training step": Item(training, 2),
    "decoding": Item(decoding, 1),
    "encoding": Item(encoding, 1),
    "reading latents": Item(reading, 64, official={"cpu": "float32", "cuda": "float32"}),
    "scoring": Item(scoring, 2, 1024, official={"cpu": "float32", "cuda": "tf32"}),
}


def variants_of(item: Item, work: Work, subject: Subject, tried: list[Precision]) -> list[Variant]:
    """Ours and, where its code is given, the official way, without what it prints, in their precisions."""
    variants = [Variant("ours", p, work.ours(p)) for p in (tried if item.official is None else ["float32"])]
    run = None if subject.code is None else work.official()
    if run is None:
        return variants
    if item.official is not None:
        return [*variants, Variant("official", item.official[subject.device], run)]

    def under(precision: Precision) -> None:
        with autocast(precision, subject.device), contextlib.redirect_stdout(io.StringIO()):
            run()

    return variants + [Variant("official", p, partial(under, p)) for p in OFFICIAL[subject.device] if p in tried]


def bench_model(subject: Subject, repeats: int, items: tuple[str, ...] = tuple(ITEMS)) -> dict[str, Any]:
    """Items of one model: what the record holds as `results`."""
    rates = {p: matrix_rate(subject.device, p) for p in dict.fromkeys((*OURS[subject.device], "float32"))}
    slowest = rates[OURS[subject.device][0]]
    tried = [p for p in OURS[subject.device] if rates[p] >= slowest]  # a CPU without bfloat16 takes minutes
    results: dict[str, Any] = {"matrix_rates": rates, "items": {}}
    for name in items:
        item = ITEMS[name]
        batch = subject.batch or getattr(item, subject.device)
        if subject.compiled:  # torch counts what it compiles over all models, and beyond a limit compiles no more
            torch._dynamo.reset()
            torch._dynamo.config.recompile_limit = 64
            torch._dynamo.config.fail_on_recompile_limit_hit = True
        graphs = compiled_graphs() if subject.compiled else 0
        with tempfile.TemporaryDirectory() as folder:
            work = item.work(subject, batch, Path(folder))
            rows = measure(variants_of(item, work, subject, tried), subject.device, repeats)
        result = summary(rows, work.flops, rates) | {"images": batch}
        result["compiled_graphs"] = compiled_graphs() - graphs if subject.compiled else None
        results["items"][name] = result
        print(f"{subject.name}, {name}: {in_words(result)}", flush=True)
    results["differences"] = differences(subject)
    return results


def summary(rows: list[dict[str, Any]], flops: float | None, rates: dict[str, float]) -> dict[str, Any]:
    """The best precision of each code, the ratio of their medians, and our share of the matrix rate."""
    best = {row["code"]: row for row in sorted(rows, key=lambda row: -row["median"])}
    ours, official = best["ours"], best.get("official")
    return {
        "variants": rows,
        "flops": flops,
        "best": {code: row["precision"] for code, row in best.items()},
        "speedup": None if official is None else official["median"] / ours["median"],
        "share_of_matrix_rate": None if flops is None else flops / ours["median"] / rates[ours["precision"]],
    }


def in_words(item: dict[str, Any]) -> str:
    """One line on an item."""
    ours = min(row["median"] for row in item["variants"] if row["code"] == "ours")
    text = f"{ours:.3g} s for {item['images']} images in {item['best']['ours']}"
    if item["share_of_matrix_rate"] is not None:
        text += f", {100 * item['share_of_matrix_rate']:.0f}% of the matrix rate"
    return text + ("" if item["speedup"] is None else f", {item['speedup']:.2f} times as fast as the official code")


@torch.no_grad()
def differences(subject: Subject) -> list[dict[str, Any]]:
    """How far each precision is from float32, on random weights: of sampled latents and of decoded images.

    The difference of latents is a root mean square over that of the float32 ones; that of images a mean, in grey
    levels; `moved` is the share of 8-bit values that change. "8 bits from float16" is what scaling a float16 image by
    255 in float16 changes, as the official evaluation does; ours scales in float32.
    """
    labels = torch.zeros(1, dtype=torch.int64)
    # Random weights make large latents; the decoder is compared on such as it is made for.
    unit = torch.randn(1, subject.cfg.channels, subject.cfg.grid, subject.cfg.grid, device=subject.device)

    def results(precision: Precision) -> tuple[Tensor, Tensor]:
        sample = dataclasses.replace(subject.sample, precision=precision)
        latents = torch.cat([part.latents for part in generate(subject.model, labels, sample, seed=0)])
        return latents, subject.autoencoder(precision).decode(unit).float()

    latents, images = results("float32")
    rows = []
    for precision in ("float16", "bf16") if subject.device == "cpu" else ("tf32", "float16", "bf16"):
        rounded, decoded = results(precision)
        error = (rounded - latents).square().mean().sqrt() / latents.square().mean().sqrt()
        levels = (decoded - images).abs()
        row = {"precision": precision, "latents": error.item(), "levels": levels.mean().item()}
        rows.append(row | {"moved": (levels > 0).float().mean().item()})
    values = torch.linspace(-1, 1, 2**20).to(torch.float16)
    in_half, ours = ((v + 1) / 2 * 255 for v in (values, values.float()))
    moved = (in_half.round() != ours.round()).float().mean().item()
    return [*rows, {"precision": "8 bits from float16", "latents": None, "levels": moved, "moved": moved}]


def bench(
    names: list[str],
    *,
    official: Path | None,
    device: str,
    repeats: int,
    batch: int | None,
    threads: int,
    out: Path,
    compiled: bool = False,
) -> Iterator[Path]:
    """Measure the paper's models `names`; yields the record of each, <device>-<name>[-compiled].json in `out`.

    Raises:
        ConfigError: the clone is none, or a package that it needs is missing.
    """
    torch.set_num_threads(threads)
    with contextlib.nullcontext() if official is None else oracle.official_code(official, device) as code:
        for name in names:
            results = bench_model(paper_subject(name, device, code=code, batch=batch, compiled=compiled), repeats)
            settings = {"model": name, "device": device, "repeats": repeats, "threads": threads, "compile": compiled}
            settings["clock"] = "CPU seconds" if device == "cpu" else "seconds"
            yield write_speed(out, f"{name}-compiled" if compiled else name, results, settings, device)


def write_speed(out: Path, what: str, results: dict[str, Any], settings: dict[str, Any], device: str) -> Path:
    """Write a record of speed; returns its path."""
    facts = provenance(device)
    machine = "cpu" if device == "cpu" else re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")
    path = out / f"{machine}-{what}.json"
    write_json(path, {"schema": SCHEMA, "settings": settings, "results": results, "provenance": facts})
    return path
