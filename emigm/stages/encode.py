"""Encode the images of both parts to raw latents, in checksummed shards."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emigm.autoencoders.autoencoder import load_autoencoder, weight_files
from emigm.autoencoders.base import Autoencoder
from emigm.autoencoders.codebook import fit_codebook
from emigm.autoencoders.encoding import describe, encode_images
from emigm.config.benchmark import Benchmark
from emigm.config.errors import check
from emigm.config.parsing import as_dict
from emigm.config.paths import PARTS, data_folder, images_folder
from emigm.config.schema import AutoencoderConfig
from emigm.data.images import NONE, ImageSource, open_images, why_none
from emigm.data.latents import SHARD_ROWS, LatentStore, Shards
from emigm.data.photos import DecodingError
from emigm.io import INDEX, checksums, fingerprint, sha256, write_arrays, write_atomically, write_json
from emigm.launching import run_stage
from emigm.stages.context import StageRun


def encode(benchmark: Benchmark, shard_rows: int = SHARD_ROWS) -> None:
    run, folder = StageRun(benchmark, "encode"), data_folder(benchmark) / "latents"
    if (reason := why_none(images_folder(benchmark))) is not None:
        if run.goes_on():
            shutil.rmtree(folder, ignore_errors=True)
            write_json(folder / NONE, {"reason": reason})
            files = {"inputs": checksums(images_folder(benchmark)), "outputs": checksums(folder / NONE)}
            run.finish({"none": reason}, **files)
        return
    start, cfg = time.perf_counter(), benchmark.autoencoder
    sources = {part: open_images(images_folder(benchmark), part, benchmark.run.workers) for part in PARTS}
    fitted = weight_files(cfg.weights) if cfg.kind == "kmeans" else []
    if fitted:
        cfg = fit(run, cfg, folder, sources["train"])
    autoencoder = load_autoencoder(cfg, run.world.device)
    weights = run.world.gather(checksums(*weight_files(cfg.weights)) if run.world.is_main else None)[0]
    shards, failures = {}, []
    for part, source in sources.items():
        views = 2 if benchmark.data.flips and part == "train" else 1
        key = fingerprint(as_dict(benchmark.autoencoder), weights, views, sha256(source.path))
        shards[part] = Shards(run.state / part, len(source), key, shard_rows)
        failures += write_missing(run, shards[part], autoencoder, source, views)
    if failures := [f for of_rank in run.world.gather(failures) for f in of_rank]:
        raise DecodingError(failures, "replace them by whole copies and run the same command again; the rest is kept")
    if not run.goes_on():
        return
    results: dict[str, Any] = {}
    for part, source in sources.items():
        facts = {"part": part, "autoencoder": benchmark.autoencoder.space, "images": sha256(source.path)}
        seconds = shards[part].finish(source.labels, facts)
        results[part] = describe(LatentStore(shards[part].files), source, autoencoder) | {"process_seconds": seconds}
    results["weights_sha256"] = {Path(file).name: checksum for file, checksum in weights.items()}
    shutil.rmtree(folder, ignore_errors=True)
    if fitted:
        write_atomically(fitted[0], lambda p: shutil.copyfile(cfg.weights, p))
    for part in PARTS:  # at the very end: DVC removes what is there before it starts the stage again
        shards[part].move(folder / part)
    results["seconds"] = time.perf_counter() - start
    inputs = checksums(*(source.path for source in sources.values())) | ({} if fitted else weights)
    outputs = checksums(*(folder / part / INDEX for part in PARTS), *fitted)
    run.finish(results, inputs=inputs, outputs=outputs)
    run.clean()


def fit(run: StageRun, cfg: AutoencoderConfig, folder: Path, train: ImageSource) -> AutoencoderConfig:
    """The configuration with a codebook, fitted to the training images, among unfinished work; one there is kept."""
    own = Path(cfg.weights).parent == folder
    check(own, f"autoencoder.weights = {cfg.weights}: kind: kmeans is written by this stage; name {folder}/...")
    path = run.state / f"codebook-{fingerprint(as_dict(cfg), sha256(train.path))}.npz"
    if run.world.is_main and not path.is_file():
        write_arrays(path, centres=fit_codebook(train.pixels(range(len(train))), cfg.codebook, cfg.patch))
    run.world.barrier()
    return dataclasses.replace(cfg, weights=str(path))


def write_missing(run: StageRun, shards: Shards, encoder: Autoencoder, source: ImageSource, views: int) -> list[str]:
    """Write this process's share of the shards that are missing, but none with an image that does not decode; returns
    all such images."""
    world, batch, failures = run.world, run.benchmark.run.encode_batch, []
    missing = world.gather(shards.missing() if world.is_main else None)[0]  # one list, though others write already
    mine = [missing[i] for i in world.share(len(missing))]
    label = f"encode {shards.folder.name}, {len(missing)} of {len(shards.ranges)} shards"
    total = sum(len(shards.ranges[i]) for i in mine)
    with tqdm(total=total, desc=label, unit="image", mininterval=1.0, disable=not world.is_main) as bar:
        for i in mine:
            start = time.perf_counter()
            try:
                latents = encode_images(encoder, source, shards.ranges[i], views, batch, bar.update)
            except DecodingError as e:
                failures += e.failures
            else:
                shards.write(i, latents, time.perf_counter() - start)
    return failures


if __name__ == "__main__":
    run_stage(encode)
