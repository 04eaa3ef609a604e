"""Encode the images of both splits to raw latents, in checksummed shards."""

from __future__ import annotations

import torch
from tqdm import tqdm

from emigm.autoencoder import Autoencoder, encode_with_flips, load_autoencoder
from emigm.config import Benchmark
from emigm.images import load_images
from emigm.latents import write_latents
from emigm.parsing import as_dict
from emigm.records import write_record
from emigm.workspace import data_folder, run_stage

BATCH = 512


def encode(benchmark: Benchmark) -> None:
    torch.set_num_threads(1)
    cfg = benchmark.autoencoder
    autoencoder = load_autoencoder(cfg)
    results = {}
    for part in ("train", "holdout"):
        pixels, labels = load_images(data_folder(benchmark) / "images" / f"{part}.npz")
        starts = tqdm(range(0, len(pixels), BATCH), desc=f"encode {part}", unit="batch")
        flips = benchmark.data.flips and part == "train"
        raw = torch.cat([encoded(autoencoder, torch.from_numpy(pixels[i : i + BATCH]), flips) for i in starts])
        write_latents(data_folder(benchmark) / "latents" / part, raw.numpy(), labels, {"autoencoder": as_dict(cfg)})
        unit = autoencoder.sample(raw.flatten(0, 1), torch.Generator().manual_seed(0))
        results[part] = {
            "images": len(raw),
            "views": raw.shape[1],
            "shape": list(raw.shape[2:]),
            "unit_mean": float(unit.mean()),
            "unit_std": float(unit.std()),
        }
    write_record(benchmark, "encode", results, device="cpu", autoencoder=cfg)


def encoded(autoencoder: Autoencoder, pixels: torch.Tensor, flips: bool) -> torch.Tensor:
    """Raw latents (B, views, ...): the image, and its horizontal flip where asked for."""
    if flips:
        return torch.stack(encode_with_flips(autoencoder, pixels), dim=1)
    return autoencoder.encode(pixels)[:, None]


if __name__ == "__main__":
    run_stage(encode)
