"""Encode the images of both splits to raw latents, in checksummed shards."""

from __future__ import annotations

import torch
from tqdm import tqdm

from emigm.autoencoder import load_autoencoder
from emigm.config import Benchmark, as_dict
from emigm.data import load_images, write_latents
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
        raw = torch.cat([autoencoder.encode(torch.from_numpy(pixels[i : i + BATCH])) for i in starts])
        write_latents(data_folder(benchmark) / "latents" / part, raw.numpy(), labels, {"autoencoder": as_dict(cfg)})
        unit = autoencoder.sample(raw, torch.Generator().manual_seed(0))
        results[part] = {
            "images": len(raw),
            "shape": list(raw.shape[1:]),
            "unit_mean": float(unit.mean()),
            "unit_std": float(unit.std()),
        }
    write_record(benchmark, "encode", results, device="cpu", autoencoder=cfg)


if __name__ == "__main__":
    run_stage(encode)
