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
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
from emigm.flops import AUTOENCODERS, group_step, sampling
from emigm.io import write_json
from emigm.metrics.features import load_extractor, write_source
from emigm.model.checkpoints import to_official
from emigm.model.model import EMIGM, cast_linear, compile_networks, compiled_graphs
from emigm.model.precision import autocast, products
from emigm.model.transfer import upload
from emigm.paper.settings import PAPER_MODELS, paper_sampling
from emigm.records.record import SCHEMA, provenance
from emigm.sample import generate
from emigm.tools import oracle
from emigm.tools.estimates import INCEPTION_FLOPS
from emigm.tools.random_files import write_inception
from emigm.train import TrainingImages, TrainingRun

ITEMS = ("sampling", "training step", "decoding", "encoding", "reading latents", "scoring")
OURS: dict[str, tuple[Precision, ...]] = {"cpu": ("float32", "bf16"), "cuda": ("tf32", "float16", "bf16")}
OFFICIAL: dict[str, tuple[Precision, ...]] = {"cpu": ("float32", "bf16"), "cuda": ("float16",)}
"""Precisions that are tried, by device; the official code fixes float16 on a GPU, which it is written for."""
BATCHES = {
    "cpu": {"sampling": 1, "training step": 2, "decoding": 1, "encoding": 1, "reading latents": 64, "scoring": 2},
    "cuda": dict.fromkeys(ITEMS, 64) | {"scoring": 1024},
}
"""Images at once; of scoring all, which the extractor takes at most `SCORED` at once."""
STORED, SCORED = 512, 64
"""Images whose latents are written to be read, and how many the extractor takes at once."""


class Subject:
    """One of the paper's models with random weights, its autoencoder, and both of the official code where it is there.

    Args:
        name: such as "256-xs".
        model: architecture; None: the paper's.
        device: "cpu" or "cuda".
        code: the official modules (`oracle.official_code`).
        batch: images at once, for all items; None: as `BATCHES` says.
        compiled: whether torch.compile compiles our networks.
        autoencoder: None: the paper's, with random weights.
    """

    def __init__(
        self,
        name: str,
        device: str,
        code: SimpleNamespace | None = None,
        batch: int | None = None,
        model: ModelConfig | None = None,
        sample: SampleConfig | None = None,
        autoencoder: Callable[[Precision], Autoencoder] | None = None,
        compiled: bool = False,
    ):
        resolution, size = name.split("-")
        self.name, self.device, self.code, self.resolution = name, device, code, int(resolution)
        self.cfg = model or PAPER_MODELS[int(resolution), size]
        self.sample = sample or paper_sampling(int(resolution), size, 16)
        self.compiled = compiled
        self.batches = {item: batch or n for item, n in BATCHES[device].items()}
        self.kind = {256: "kl16", 512: "dcae"}[self.resolution]
        self.autoencoder = autoencoder or random_autoencoder(self.kind, device)
        torch.manual_seed(0)
        self.model = EMIGM(self.cfg).to(device).eval()
        with torch.no_grad():  # the head starts at zero, which no network is left at
            for parameter in self.model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)

    def official_model(self) -> nn.Module:
        """The official model of the same weights."""
        s = self.sample
        options = {"num_sampling_steps": str(s.solver_steps), "sampling_algo": s.solver}
        options |= {"cfg_t_min": s.cfg_interval[0], "cfg_t_max": s.cfg_interval[1], "mask_strategy": s.schedule}
        theirs = oracle.build(self.code, self.cfg, **options)
        theirs.load_state_dict(to_official(self.model.state_dict(), self.cfg))
        return theirs.to(self.device)

    def sampling(self, precisions: list[Precision], _: Path) -> tuple[list[Variant], float]:
        """Variants that generate a batch of latents, and FLOPs."""
        batch = self.batches["sampling"]
        labels = torch.arange(batch) % self.cfg.classes

        def ours(precision: Precision) -> Callable[[], object]:
            model, cfg = copy.deepcopy(self.model), dataclasses.replace(self.sample, precision=precision)
            cast_linear(model, precision)
            if self.compiled:
                compile_networks(model)
            return lambda: list(generate(model, labels, cfg, seed=0))

        variants = [Variant("ours", p, ours(p)) for p in precisions]
        if self.code is not None:
            theirs, s = self.official_model().eval(), self.sample

            @torch.no_grad()
            def official() -> None:
                theirs.sample_tokens(batch, s.steps, s.cfg_scale, labels=labels.to(self.device))

            variants += self._official(official, precisions)
        return variants, batch * sampling(self.cfg, self.sample)

    def training(self, precisions: list[Precision], _: Path) -> tuple[list[Variant], float]:
        """Variants that take an optimizer step, and FLOPs. Each step masks as many tokens as the mean step does."""
        batch, cfg = self.batches["training step"], self.cfg
        torch.manual_seed(0)
        latents = torch.randn(batch, cfg.channels, cfg.grid, cfg.grid)
        labels = torch.arange(batch) % cfg.classes
        images = TrainingImages(labels.numpy(), 1, lambda i, _: latents[i], read_ahead=False)
        world = World(0, 1, self.device)

        def ours(precision: Precision) -> tuple[TrainingRun, int]:
            train = TrainConfig(10**6, batch, 1e-5, mask_group=batch, precision=precision)
            run = TrainingRun(cfg, train, images, Pixels(1.0), 0, Path(), "-", world, compiled=self.compiled)
            counts = [int(run.draw(step, 0, latents.shape[1:])[0].counts[0]) for step in range(50)]
            return run, int(np.argsort(np.abs(counts - np.mean(counts)), kind="stable")[0])

        def step(precision: Precision) -> Callable[[], None]:
            run, chosen = ours(precision)

            def once() -> None:
                run.step(chosen, upload(latents, self.device), upload(labels, self.device))
                run.unread.clear()

            return once

        variants = [Variant("ours", p, step(p)) for p in precisions]
        run, chosen = ours("float32")
        masked = int(run.draw(chosen, 0, latents.shape[1:])[0].counts.sum())
        if self.code is not None:
            variants += self._official(self._official_step(latents, labels, masked // batch), precisions)
        return variants, group_step(cfg, run.cfg, batch, masked)

    def _official_step(self, latents: Tensor, labels: Tensor, masked: int) -> Callable[[], None]:
        theirs, draw = self.official_model().train(), oracle.fixed_masking
        recipe = {"lr": 1e-5, "min_lr": 0.0, "lr_schedule": "constant", "warmup_epochs": 0, "epochs": 1}
        recipe |= {"grad_clip": 3.0, "ema_rate": 0.9999, "use_dc_ae": True}  # the batch is latents as they are
        parameters = list(theirs.parameters())
        average = [p.detach().clone() for p in parameters]
        groups = self.code.misc.add_weight_decay(theirs, 0.02)
        optimizer = torch.optim.AdamW(groups, 1e-5, (0.9, 0.95))
        scaler = self.code.misc.NativeScalerWithGradNormCount()
        theirs.random_masking = draw(theirs, masked)
        train = self.code.engine_emigm.train_one_epoch

        def once() -> None:
            data = [(latents, labels)]
            args = SimpleNamespace(**recipe)
            train(theirs, None, parameters, average, data, optimizer, self.device, 0, scaler, args=args)

        return once

    def decoding(self, precisions: list[Precision], _: Path) -> tuple[list[Variant], float]:
        """Variants that turn latents into images, ours to 8 bits and checked for NaN, and FLOPs."""
        batch = self.batches["decoding"]
        torch.manual_seed(0)
        ours = {p: self.autoencoder(p) for p in precisions}
        side, scale = self.resolution // ours[precisions[0]].stride, ours[precisions[0]].scale
        unit = torch.randn(batch, ours[precisions[0]].latent_channels, side, side, device=self.device)
        variants = [Variant("ours", p, lambda ae=ae: ae.decode(unit, batch)) for p, ae in ours.items()]
        if self.code is not None and self.kind == "kl16":
            theirs = self._official_autoencoder()
            variants += self._official(torch.no_grad()(lambda: theirs.decode(unit / scale)), precisions)
        return variants, batch * self._autoencoder_flops()[1]

    def encoding(self, precisions: list[Precision], _: Path) -> tuple[list[Variant], float]:
        """Variants that turn images into raw latents, and FLOPs."""
        batch = self.batches["encoding"]
        pixels = torch.randint(256, (batch, 3, self.resolution, self.resolution), dtype=torch.uint8)
        variants = [
            Variant("ours", p, lambda ae=ae: ae.encode(pixels, batch))
            for p, ae in ((p, self.autoencoder(p)) for p in precisions)
        ]
        if self.code is not None and self.kind == "kl16":
            theirs, images = self._official_autoencoder(), pixels.float() / 127.5 - 1
            encode = torch.no_grad()(lambda: theirs.encode(images.to(self.device)).parameters.cpu())
            variants += self._official(encode, precisions)
        return variants, batch * self._autoencoder_flops()[0]

    def reading(self, _: list[Precision], folder: Path) -> tuple[list[Variant], None]:
        """Variants that read the raw latents of random images, of whose flips one or the other is taken."""
        cfg, rng, batch = self.cfg, np.random.default_rng(0), self.batches["reading latents"]
        channels = cfg.channels * (2 if self.kind == "kl16" else 1)
        latents = rng.standard_normal((STORED, 2, channels, cfg.grid, cfg.grid), dtype=np.float32)
        shards = Shards(folder / "ours", STORED, "bench")
        for i, rows in enumerate(shards.ranges):
            shards.write(i, latents[rows.start : rows.stop])
        shards.finish(np.zeros(STORED, dtype=np.int64), {})
        store = LatentStore(shards.store)

        def ours() -> Tensor:
            return torch.from_numpy(store.rows(rng.integers(STORED, size=batch), rng.integers(2, size=batch)))

        variants = [Variant("ours", "float32", ours)]
        if self.code is not None:
            files = [folder / f"{i}.npz" for i in range(STORED)]
            for file, (plain, flipped) in zip(files, latents, strict=True):
                np.savez(file, moments=plain, moments_flip=flipped)
            loader = importlib.import_module("util.loader").CachedFolder
            theirs = loader.__new__(loader)  # its constructor starts 48 processes to list the files
            theirs.samples = [(str(file), 0) for file in files]

            def official() -> Tensor:
                return torch.stack([torch.from_numpy(theirs[i][0]) for i in rng.integers(STORED, size=batch)])

            variants.append(Variant("official", "float32", official))
        return variants, None

    def scoring(self, _: list[Precision], folder: Path) -> tuple[list[Variant], float]:
        """Variants that give Inception's features and logits of images, once, in float32; FLOPs.

        The official evaluation has torch-fidelity do so, of files: the same here, without its loading of weights.
        """
        batch, weights = self.batches["scoring"], folder / "inception.pth"
        write_inception(weights)
        write_source(folder / "extractor", weights)
        cfg = ExtractorConfig("inception", weights=str(weights))
        with products("float32", self.device):  # gives back the switches that an extractor sets for good
            extract = load_extractor(cfg, folder / "extractor", self.device, SCORED, clean=False)
        shape = (batch, 3, self.resolution, self.resolution)
        pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)

        def ours() -> None:
            with products("float32", self.device):
                extract(pixels)

        variants = [Variant("ours", "float32", ours)]
        if self.code is not None:
            files = [folder / f"{i}.png" for i in range(batch)]
            for file, image in zip(files, pixels, strict=True):
                Image.fromarray(image.transpose(1, 2, 0)).save(file)
            images, cuda = ImagesPathDataset(files), self.device != "cpu"

            def official() -> None:
                with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):  # as PyTorch has them
                    # On a CPU no processes that read files: their time is not this process's.
                    get_featuresdict_from_dataset(
                        images, extract.network, SCORED, cuda=cuda, save_cpu_ram=not cuda, verbose=False
                    )

            variants.append(Variant("official", "tf32" if cuda else "float32", official))
        return variants, batch * INCEPTION_FLOPS

    def _official_autoencoder(self) -> nn.Module:
        kind = importlib.import_module("models.vae").AutoencoderKL
        return kind(embed_dim=16, ch_mult=(1, 1, 2, 2, 4)).to(self.device).eval()

    def _autoencoder_flops(self) -> tuple[float, float]:
        encode, decode, side = AUTOENCODERS[self.kind]
        return encode * (self.resolution / side) ** 2, decode * (self.resolution / side) ** 2

    def _official(self, run: Callable[[], object], precisions: list[Precision]) -> list[Variant]:
        """The official code in its precisions, without what it prints."""

        def under(precision: Precision) -> None:
            with autocast(precision, self.device), contextlib.redirect_stdout(io.StringIO()):
                run()

        tried = [p for p in OFFICIAL[self.device] if p in precisions]
        return [Variant("official", p, lambda p=p: under(p)) for p in tried]


def random_autoencoder(kind: str, device: str) -> Callable[[Precision], Autoencoder]:
    """The paper's autoencoder with random weights, in any precision."""
    import diffusers  # takes seconds

    torch.manual_seed(0)
    make = {
        "kl16": lambda: (diffusers.AutoencoderKL(**KL16_CONFIG), KL16, 0.2325),
        "dcae": lambda: (diffusers.AutoencoderDC(**DCAE_CONFIG), DCAE, 0.3189),
    }
    module, wrapper, scale = make[kind]()
    module = module.to(device).eval().requires_grad_(False)
    return lambda precision: wrapper(module, scale, device, precision)


def bench_model(subject: Subject, repeats: int, items: tuple[str, ...] = ITEMS) -> dict[str, Any]:
    """All items of one model: what the record holds as `results`."""
    rates = {p: matrix_rate(subject.device, p) for p in dict.fromkeys((*OURS[subject.device], "float32"))}
    slowest = rates[OURS[subject.device][0]]
    tried = [p for p in OURS[subject.device] if rates[p] >= slowest]  # a CPU without bfloat16 takes minutes
    found: dict[str, Any] = {"matrix_rates": rates, "items": {}}
    of_model = (subject.sampling, subject.training, subject.decoding, subject.encoding)
    makers = dict(zip(ITEMS, (*of_model, subject.reading, subject.scoring), strict=True))
    for item in items:
        if subject.compiled:  # torch counts what it compiles over all models, and beyond a limit compiles no more
            torch._dynamo.reset()
            torch._dynamo.config.recompile_limit = 64
            torch._dynamo.config.fail_on_recompile_limit_hit = True
        graphs = compiled_graphs() if subject.compiled else 0
        with tempfile.TemporaryDirectory() as folder:
            variants, flops = makers[item](tried, Path(folder))
            rows = measure(variants, subject.device, repeats)
        found["items"][item] = summary(rows, flops, rates) | {"images": subject.batches[item]}
        found["items"][item]["compiled_graphs"] = compiled_graphs() - graphs if subject.compiled else None
        print(f"{subject.name}, {item}: {in_words(found['items'][item])}", flush=True)
    found["differences"] = differences(subject)
    return found


def summary(rows: list[dict[str, Any]], flops: float | None, rates: dict[str, float]) -> dict[str, Any]:
    """The best precision of each code, the ratio of their medians, and our share of the matrix rate."""
    best = {}
    for row in sorted(rows, key=lambda row: -row["median"]):
        best[row["code"]] = row
    ours, official = best["ours"], best.get("official")
    share = None if flops is None else flops / ours["median"] / rates[ours["precision"]]
    return {
        "variants": rows,
        "flops": flops,
        "best": {code: row["precision"] for code, row in best.items()},
        "speedup": None if official is None else official["median"] / ours["median"],
        "share_of_matrix_rate": share,
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
    found = []
    for precision in ("float16", "bf16") if subject.device == "cpu" else ("tf32", "float16", "bf16"):
        rounded, decoded = results(precision)
        error = (rounded - latents).square().mean().sqrt() / latents.square().mean().sqrt()
        levels = (decoded - images).abs()
        row = {"precision": precision, "latents": error.item(), "levels": levels.mean().item()}
        found.append(row | {"moved": (levels > 0).float().mean().item()})
    values = torch.linspace(-1, 1, 2**20).to(torch.float16)
    in_half, ours = ((v + 1) / 2 * 255 for v in (values, values.float()))
    moved = (in_half.round() != ours.round()).float().mean().item()
    return [*found, {"precision": "8 bits from float16", "latents": None, "levels": moved, "moved": moved}]


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
            found = bench_model(Subject(name, device, code, batch, compiled=compiled), repeats)
            settings = {"model": name, "device": device, "repeats": repeats, "threads": threads, "compile": compiled}
            settings["clock"] = "CPU seconds" if device == "cpu" else "seconds"
            yield write_speed(out, f"{name}-compiled" if compiled else name, found, settings, device)


def write_speed(out: Path, what: str, results: dict[str, Any], settings: dict[str, Any], device: str) -> Path:
    """Write a record of speed; returns its path."""
    facts = provenance(device)
    machine = "cpu" if device == "cpu" else re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")
    path = out / f"{machine}-{what}.json"
    write_json(path, {"schema": SCHEMA, "settings": settings, "results": results, "provenance": facts})
    return path
