"""Encode the images of both parts to raw latents, in checksummed shards."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from emigm.autoencoders.autoencoder import load_autoencoder, weight_files
from emigm.autoencoders.base import Autoencoder, encode_with_flips
from emigm.autoencoders.codebook import fit_codebook, save_codebook
from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.config.parsing import as_dict
from emigm.config.paths import STATE, data_folder, images_folder
from emigm.config.schema import AutoencoderConfig
from emigm.data.images import NONE, PARTS, ImageSource, open_images, why_none
from emigm.data.latents import INDEX, SHARD_ROWS, LatentStore, Shards
from emigm.data.photos import DecodingError
from emigm.distributed import World, join
from emigm.io import checksums, fingerprint, sha256, write_atomically, write_json
from emigm.launching import run_stage
from emigm.pools import Stopwatch
from emigm.records.record import cpu_seconds, write_record

STATISTICS_IMAGES = 2048
"""Images, evenly spaced, that the record's mean and deviation of unit latents are taken over, at most."""

Encoder = Callable[[range, Callable[[int], Any]], np.ndarray]
"""Images' numbers and a progress callback => their raw latents (n, views, ...)."""


def encode(benchmark: Benchmark, shard_rows: int = SHARD_ROWS) -> None:
    world = join(benchmark.run)
    folder, state = data_folder(benchmark), STATE / benchmark.name / "encode"
    if (reason := why_none(images_folder(benchmark))) is not None:
        if world.is_main:
            shutil.rmtree(folder / "latents", ignore_errors=True)
            none = folder / "latents" / NONE
            write_json(none, {"reason": reason})
            files = {"inputs": checksums(images_folder(benchmark)), "outputs": checksums(none)}
            settings = {"device": world.device, "autoencoder": benchmark.autoencoder}
            write_record(benchmark, "encode", {"none": reason}, **files, **settings)
        return
    watch = Stopwatch()
    world.check_shared(state)
    sources = {part: open_images(images_folder(benchmark), part, benchmark.run.workers) for part in PARTS}
    cfg = benchmark.autoencoder
    if cfg.kind == "kmeans":
        cfg = fitted(cfg, folder / "latents", sources["train"], state, world)
    autoencoder = load_autoencoder(cfg, world.device)
    weights = world.gather(checksums(*weight_files(cfg.weights)) if world.is_main else None)[0]
    shards, failures = {}, []
    for part, source in sources.items():
        views = 2 if benchmark.data.flips and part == "train" else 1
        key = fingerprint(as_dict(benchmark.autoencoder), weights, views, sha256(source.path))
        shards[part] = Shards(state / part, len(source), key, shard_rows)
        encoder = partial(encode_rows, autoencoder, source, views, benchmark.run.encode_batch)
        failures += write_missing(shards[part], encoder, world, f"encode {part}")
    if failures := [f for of_rank in world.gather(failures) for f in of_rank]:
        raise DecodingError(failures, "replace them by whole copies and run the same command again; the rest is kept")
    others = sum(world.gather(cpu_seconds())[1:])
    if not world.is_main:
        return
    results = {}
    for part, source in sources.items():
        facts = {"part": part, "autoencoder": benchmark.autoencoder.space, "images": sha256(source.path)}
        results[part] = finish(shards[part], source.labels, facts, autoencoder)
        if cfg.kind == "kmeans":
            results[part]["reconstruction_rmse"] = reconstruction_error(shards[part], source, autoencoder)
    shutil.rmtree(folder / "latents", ignore_errors=True)
    made = weight_files(benchmark.autoencoder.weights) if cfg.kind == "kmeans" else []
    if made:
        write_atomically(made[0], lambda p: shutil.copyfile(cfg.weights, p))
    for part in PARTS:  # at the very end: DVC removes what is there before it starts the stage again
        shards[part].move(folder / "latents" / part)
    shutil.rmtree(state)
    by_name = {Path(file).name: checksum for file, checksum in weights.items()}
    results |= {"weights_sha256": by_name, "seconds": watch.seconds()}
    write_record(
        benchmark,
        "encode",
        results,
        device=world.device,
        processes=world.size,
        inputs=checksums(*(source.path for source in sources.values())) | ({} if cfg.kind == "kmeans" else weights),
        outputs=checksums(*(folder / "latents" / part / INDEX for part in PARTS), *made),
        others_cpu_seconds=others,
        autoencoder=benchmark.autoencoder,
    )


def fitted(cfg: AutoencoderConfig, folder: Path, train: ImageSource, state: Path, world: World) -> AutoencoderConfig:
    """The configuration with a codebook, fitted to the training images, in `state`; one that is there is kept."""
    if Path(cfg.weights).parent != folder:
        raise ConfigError(
            f"autoencoder.weights = {cfg.weights}: kind: kmeans is written by this stage; name {folder}/..."
        )
    path = state / f"codebook-{fingerprint(as_dict(cfg), sha256(train.path))}.npz"
    if world.is_main and not path.is_file():
        save_codebook(path, fit_codebook(train.pixels(range(len(train))), cfg.codebook, cfg.patch))
    world.barrier()
    return dataclasses.replace(cfg, weights=str(path))


def reconstruction_error(shards: Shards, source: ImageSource, autoencoder: Autoencoder) -> float:
    """Root mean square error, in grey levels of 0 to 255, of images that are encoded and decoded: the information that
    codes lose."""
    store = LatentStore(shards.store)
    chosen = np.arange(0, len(store), -(-len(store) // STATISTICS_IMAGES))
    decoded = autoencoder.decode(autoencoder.sample(torch.from_numpy(store.rows(chosen, view=0))))
    difference = decoded.numpy().astype(np.float64) - source.pixels(chosen)
    return float(np.sqrt(np.square(difference).mean()))


def write_missing(shards: Shards, encoder: Encoder, world: World, label: str) -> list[str]:
    """Write this process's share of the shards that are missing; returns the images that do not decode.

    A shard with such an image is not written, but its other images are tried, so that all are named at once.
    """
    missing = world.gather(shards.missing() if world.is_main else None)[0]  # one list, though others write already
    mine = [missing[i] for i in world.share(len(missing))]
    if world.size > 1:
        label += f", process {world.rank + 1} of {world.size}"
    if len(missing) < len(shards):
        label += f", {len(shards) - len(missing)} of {len(shards)} shards made before"
    failures: list[str] = []
    total = sum(len(shards.ranges[i]) for i in mine)
    with tqdm(total=total, desc=label, unit="image", mininterval=1.0, disable=not world.is_main) as bar:
        for i in mine:
            watch = Stopwatch()
            try:
                latents = encoder(shards.ranges[i], bar.update)
            except DecodingError as e:
                failures += e.failures
            else:
                shards.write(i, latents, watch.seconds())
    return failures


def encode_rows(
    autoencoder: Autoencoder,
    source: ImageSource,
    views: int,
    batch: int,
    rows: range,
    progress: Callable[[int], Any],
) -> np.ndarray:
    """Raw latents of consecutive images.

    Args:
        autoencoder: what encodes them.
        source: the images.
        views: 2 to encode the horizontal flips as well.
        batch: images encoded at once.
        rows: numbers of the images.
        progress: called with the number of images that were done since the last call.

    Returns:
        float32 (n, views, ...).

    Raises:
        DecodingError: names all of these images that do not decode.
    """
    raw, failures = [], []
    for pixels in read_ahead(source, [rows[i : i + batch] for i in range(0, len(rows), batch)]):
        if isinstance(pixels, DecodingError):
            failures += pixels.failures
        elif not failures:
            images = torch.from_numpy(pixels)
            one = views == 1
            encoded = (autoencoder.encode(images, batch),) if one else encode_with_flips(autoencoder, images, batch)
            raw.append(torch.stack(encoded, dim=1).numpy())
            progress(len(images))
    if failures:
        raise DecodingError(failures, "replace them")
    return np.concatenate(raw)


def read_ahead(source: ImageSource, batches: Sequence[range]) -> Iterator[np.ndarray | DecodingError]:
    """Pixels of every batch, in order; the next is read while the caller works on one."""

    def read(rows: range) -> np.ndarray | DecodingError:
        try:
            return source.pixels(rows)
        except DecodingError as e:
            return e

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, batches[0])
        for following in batches[1:]:
            pixels, coming = coming.result(), reader.submit(read, following)
            yield pixels
        yield coming.result()


def finish(shards: Shards, labels: np.ndarray, facts: dict[str, Any], autoencoder: Autoencoder) -> dict[str, Any]:
    """Make the store whole, and describe it for the record."""
    shards.finish(labels, facts)
    store = LatentStore(shards.store)
    chosen = np.arange(0, len(store), -(-len(store) // STATISTICS_IMAGES))
    raw = torch.from_numpy(store.rows(chosen)).flatten(0, 1)
    unit = autoencoder.sample(raw, torch.Generator().manual_seed(0))
    if unit.is_floating_point():
        statistics = {"unit_mean": float(unit.mean()), "unit_std": float(unit.std())}
    else:  # codes have no mean
        statistics = {"codes_used": len(unit.unique())}
    return {
        "images": len(store),
        "views": store.views,
        "shape": list(store.shape),
        **statistics,
        "statistics_images": len(chosen),
        "process_seconds": shards.seconds(),
    }


if __name__ == "__main__":
    run_stage(encode)
