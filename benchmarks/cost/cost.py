"""What single steps cost at the paper's sizes on this machine: time and peak memory, with random weights.

python benchmarks/cost/cost.py        writes results/cost/<cpu or cuda>.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from emigm.autoencoders.autoencoder import DCAE, DCAE_CONFIG, KL16, KL16_CONFIG, Autoencoder
from emigm.config.schema import TrainConfig
from emigm.files import write_json
from emigm.model.model import EMIGM, draw_training
from emigm.paper.settings import PAPER_MODELS
from emigm.records.record import SCHEMA, provenance
from emigm.runtime.distributed import autocast
from emigm.training import make_optimizer, update_ema

BATCH = 4


def training_step(size: str, device: str) -> Callable[[], object]:
    """One optimizer step of a 256 x 256 model on a batch of 4, the mask drawn anew each time."""
    model_cfg = PAPER_MODELS[256, size]
    precision = "float32" if device == "cpu" else "bf16"
    cfg = TrainConfig(steps=1, batch=BATCH, lr=8e-4, precision=precision)
    model = EMIGM(model_cfg).to(device).train()
    optimizer, parameters = make_optimizer(model, cfg), list(model.parameters())
    ema = [p.detach().clone() for p in parameters]
    latents = torch.randn(BATCH, model_cfg.channels, model_cfg.grid, model_cfg.grid, device=device)
    labels, rng = torch.zeros(BATCH, dtype=torch.int64, device=device), np.random.default_rng(0)

    def step() -> None:
        draw = draw_training(model_cfg, cfg, BATCH, rng, torch.Generator(device).manual_seed(0))
        with autocast(precision, device):
            loss = model(latents, labels, draw)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, cfg.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_ema(ema, [p.detach() for p in parameters], cfg.ema)

    return step


def kl16(device: str) -> Autoencoder:
    from diffusers import AutoencoderKL

    return KL16(AutoencoderKL(**KL16_CONFIG).to(device).eval(), 0.2325, device)


def dcae(device: str) -> Autoencoder:
    from diffusers import AutoencoderDC

    return DCAE(AutoencoderDC(**DCAE_CONFIG).to(device).eval(), 0.3189, device)


def encoding(make: Callable[[str], Autoencoder], resolution: int, device: str) -> Callable[[], object]:
    autoencoder = make(device)
    return partial(autoencoder.encode, torch.zeros(1, 3, resolution, resolution, dtype=torch.uint8))


def decoding(make: Callable[[str], Autoencoder], resolution: int, device: str) -> Callable[[], object]:
    autoencoder = make(device)
    side = resolution // autoencoder.stride
    return partial(autoencoder.decode, torch.randn(1, autoencoder.latent_channels, side, side))


ITEMS: dict[str, Callable[[str], Callable[[], object]]] = {
    f"xs-256 training step, batch {BATCH}": partial(training_step, "xs"),
    "KL-16 encode, one image 256": partial(encoding, kl16, 256),
    "KL-16 decode, one image 256": partial(decoding, kl16, 256),
    "DC-AE encode, one image 512": partial(encoding, dcae, 512),
    "DC-AE decode, one image 512": partial(decoding, dcae, 512),
}


def measure(name: str, device: str, repeats: int) -> dict[str, object]:
    """Seconds of each repetition after a first one, and the peak memory (bytes) of the process that did it."""
    torch.manual_seed(0)
    run = ITEMS[name](device)
    seconds = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    memory = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}  # Linux counts in KiB
    if device != "cpu":
        memory["gpu"] = torch.cuda.max_memory_allocated()
    return {"seconds": seconds[1:], "median": statistics.median(seconds[1:]), "peak_bytes": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")  # a process each, so that peaks are their own
    results = {}
    for name in ITEMS:
        with context.Pool(1) as pool:
            results[name] = pool.apply(measure, (name, options.device, options.repeats))
        print(f"{name}: {results[name]['median']:.2f} s, peak {results[name]['peak_bytes']}", flush=True)
    record = {
        "schema": SCHEMA,
        "what": __doc__.split("\n")[0],
        "threads": torch.get_num_threads(),
        "results": results,
        "provenance": provenance(options.device),
    }
    write_json(Path("results") / "cost" / f"{options.device}.json", record)


if __name__ == "__main__":
    main()
