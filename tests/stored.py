"""Latents and images where stages look for them, without the stages that make them; records read; several processes."""

import dataclasses
import multiprocessing
import os
import socket
import traceback
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from emigm.config.benchmark import load_benchmark
from emigm.config.schema import DataConfig, RunConfig
from emigm.data.latents import SHARD_ROWS, Shards
from emigm.data.samples import Chunks
from emigm.distributed import join
from emigm.records.record import read_record

ROOT = Path(__file__).parents[1]


def write_latents(folder, latents, labels, facts, shard_rows=SHARD_ROWS):
    """Raw latents (n, views, ...) and labels (n,) as the encode stage leaves them."""
    shards = Shards(folder.with_name(f".{folder.name}"), len(latents), "", shard_rows)
    for i, rows in enumerate(shards.ranges):
        shards.write(i, latents[rows.start : rows.stop])
    shards.finish(labels, facts)
    shards.move(folder)


def write_samples(folder, pixels, labels, chunk, **facts):
    """Images (n, c, h, w) and labels (n,) as the sample stage leaves those of one run."""
    chunks = Chunks(folder.with_name(f".{folder.name}"), len(pixels), chunk)
    for i, (start, stop) in enumerate(chunks.ranges):
        chunks.write(i, pixels[start:stop], labels[start:stop])
    chunks.finish(**facts)
    chunks.move(folder)


def record(name, stage):
    """What a stage of a benchmark has recorded in the working directory."""
    return read_record(f"results/{name}/records/{stage}.json")


class Code:
    """What unpickles as a call, which makes a folder."""

    def __init__(self, path="ran"):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_photos(root, classes, each=2, size=(40, 24)):
    """Photos of noise in a colour of their class, one folder for each class: names, or {name: how many}."""
    numbers = classes if isinstance(classes, dict) else dict.fromkeys(classes, each)
    for c, (name, number) in enumerate(numbers.items()):
        (root / name).mkdir(parents=True)
        for i in range(number):
            pixels = noise(*size, seed=10 * c + i) // 2
            pixels[..., c % 3] += 128
            Image.fromarray(pixels).save(root / name / f"{name}_{i}.JPEG")
    return root


def photo_benchmark(classes=("n1", "n2", "n3"), each=2, **data):
    """A benchmark of 16 x 16 pixels of photos, which lie in train and val of the working directory."""
    write_photos(Path("train"), classes, each)
    write_photos(Path("val"), classes, each=1)
    data = {"root": "train", "holdout_root": "val", "classes": len(classes), "resolution": 16, **data}
    smoke = load_benchmark(ROOT / "benchmarks/smoke/params.yaml")
    changes = {"data": DataConfig("imagenet", **data), "model": {**smoke.model, "classes": len(classes)}}
    return dataclasses.replace(smoke, name="photos", images_of="photos", **changes)


FORK = multiprocessing.get_context("fork") if os.name == "posix" else None  # what is imported already is there at once


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def connect(rank, size, port):
    """Set what torchrun sets."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)


def answers(job, *args, started, size):
    """(whether it raised, result or traceback) of job(world, *args) in each of the first `started` processes of `size`
    that wait for each other, connected as torchrun connects them."""
    port, pipes = free_port(), [FORK.Pipe(duplex=False) for _ in range(started)]

    def work(rank, pipe):
        connect(rank, size, port)
        try:
            pipe.send((False, job(join(RunConfig(device="cpu")), *args)))
        except BaseException:
            pipe.send((True, traceback.format_exc()))

    workers = [FORK.Process(target=work, args=(rank, writer)) for rank, (_, writer) in enumerate(pipes)]
    for worker in workers:
        worker.start()
    for (reader, _), worker in zip(pipes, workers, strict=True):
        assert reader.poll(100), "a process hangs or died"
        yield reader.recv()
        worker.join(20)
    for worker in workers:
        worker.kill()


def together(job, *args, size=2):
    """[job(world, *args) of every process]"""
    done = list(answers(job, *args, started=size, size=size))
    assert not any(raised for raised, _ in done), done
    return [result for _, result in done]
