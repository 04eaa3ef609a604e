"""Latents and images where stages look for them, without the stages that make them."""

import dataclasses
import multiprocessing
import os
import socket
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from emigm.config.benchmark import load_benchmark
from emigm.config.schema import DataConfig
from emigm.data.latents import SHARD_ROWS, Shards
from emigm.data.samples import Chunks


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


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_photos(root, classes, each=2, size=(40, 24)):
    """Photos of noise, one folder for each class."""
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(noise(*size, seed=10 * c + i)).save(root / name / f"{name}_{i}.JPEG")
    return root


def photo_benchmark(classes=("n1", "n2", "n3"), each=2, **data):
    """A benchmark of 16 x 16 pixels of photos, which lie in train and val of the working directory."""
    write_photos(Path("train"), classes, each)
    write_photos(Path("val"), classes, each=1)
    data = DataConfig("imagenet", root="train", holdout_root="val", classes=len(classes), resolution=16, **data)
    smoke = load_benchmark(Path(__file__).parents[1] / "benchmarks/smoke/params.yaml")
    model = {**smoke.model, "classes": len(classes)}
    return dataclasses.replace(smoke, name="photos", images_of="photos", data=data, model=model)


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


def in_processes(n, job, *arguments):
    """Run job(*arguments) in n processes, as torchrun would start them; returns their exit codes."""
    port = free_port()

    def start(rank):
        connect(rank, n, port)
        job(*arguments)

    children = [FORK.Process(target=start, args=(rank,)) for rank in range(n)]
    for child in children:
        child.start()
    for child in children:
        child.join(100)
    return [child.exitcode for child in children]
