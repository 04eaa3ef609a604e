"""`emigm generate`: images of a trained or a released model as one labelled PNG."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from emigm.api import Generator, load_generator, trained_by, trained_model
from emigm.config.compose import compose_benchmark
from emigm.config.errors import ConfigError, RunError
from emigm.config.parsing import as_dict
from emigm.config.schema import SampleConfig
from emigm.io import write_atomically

FEW = 5_000_000
"""Parameters below which a model on a CPU has one thread."""
LEAST_SIDE, MOST_WIDTH = 64, 2600
"""Pixels: smaller images are enlarged by a whole factor; a wider row of classes goes on below."""
FONT_SIZE, MARGIN = 14, 4


def generate_grid(
    name: str,
    classes: Sequence[int],
    seeds: Sequence[int],
    out: Path,
    *,
    given: dict[str, Any],
    autoencoder: Path | None = None,
    device: str = "auto",
    batch: int = 16,
) -> SampleConfig:
    """Generate one image for each class (column) and sampling seed (row) into the .png `out`, which holds how it came
    about; returns the sampling settings that applied: the model's own, where none are `given`.

    `name` and `autoencoder` are what `load_generator` takes; `batch` images are made at once.

    Raises:
        ConfigError: the model, a class, a setting or the file's name is wrong; before anything is generated.
        RunError: the GPU's memory does not suffice.
    """
    if out.suffix != ".png" or out.is_dir():
        raise ConfigError(f"--out {out}: name a file that ends in .png")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no GPU; leave it out, or mend the driver")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if folder := trained_model(name):
        print(f"{name}: {folder}")
        name = str(folder)
    generator = load_generator(name, autoencoder, device)
    if device == "cpu" and sum(p.numel() for p in generator.model.parameters()) < FEW:
        torch.set_num_threads(
            1
        )  # as in the stages: threads that wait for a core cost a small model more than they gain
    known = generator.model.cfg.classes
    if wrong := [c for c in classes if not 0 <= c < known]:
        raise ConfigError(f"--classes: {wrong[0]} is no class of {name}; its classes are 0 to {known - 1}")
    sampling = settings(generator, name, given)

    rows: list[list[Image.Image]] = []
    try:
        with tqdm(total=len(seeds) * len(classes), desc=f"generate on {device}", unit="image", smoothing=0.05) as bar:
            for seed in seeds:
                rows.append([])
                for image in generator.images(classes, seed, sampling, batch):
                    rows[-1].append(image)
                    bar.update()
    except torch.OutOfMemoryError as e:
        raise RunError(f"the memory of {device} does not suffice; lower --batch (now {batch})") from e
    note = PngInfo()
    facts = {"model": name, "classes": list(classes), "seeds": list(seeds), "sampling": as_dict(sampling)}
    note.add_text("emigm", json.dumps(facts))
    write_atomically(out, lambda path: labelled(rows, classes, seeds).save(path, "PNG", pnginfo=note))
    return sampling


def settings(generator: Generator, name: str, given: dict[str, Any]) -> SampleConfig:
    """The model's own sampling settings, or those of its benchmark, with the `given` ones in their place."""
    own = generator.sampling or benchmark_sampling(Path(name))
    if own is not None:
        return dataclasses.replace(own, **given)
    categorical = generator.model.cfg.codebook is not None
    if missing := [k for k in ("steps", *(() if categorical else ("solver_steps",))) if k not in given]:
        options = " and ".join(f"--{k.replace('_', '-')}" for k in missing)
        raise ConfigError(f"{name}: no sampling settings are stored with this model; give {options}")
    return SampleConfig(**given, **({"solver": "categorical"} if categorical else {}))


def benchmark_sampling(folder: Path) -> SampleConfig | None:
    """Settings of the benchmark's budget of most steps, for a folder that its train stage made; None: another folder.

    They are not stored in the folder: then every change of a sampling setting would train the model again.
    """
    if (origin := trained_by(folder)) is None:
        return None
    _, name, size, _ = origin
    return compose_benchmark(name).finest_sampling(size)


def labelled(rows: list[list[Image.Image]], classes: Sequence[int], seeds: Sequence[int]) -> Image.Image:
    """One row of images for each seed and one column for each class, both named; where the classes are too many for
    one row, the next of them follow below."""
    font = ImageFont.load_default(FONT_SIZE)
    scale = max(1, LEAST_SIDE // rows[0][0].width)
    width, height = (side * scale for side in rows[0][0].size)
    left = round(max(font.getlength(f"seed {s}") for s in seeds)) + 2 * MARGIN
    title = FONT_SIZE + 2 * MARGIN
    columns = min(len(classes), max(1, MOST_WIDTH // (width + 1)))
    block = title + len(seeds) * (height + 1)  # the height of one row of classes
    sheet = Image.new("RGB", (left + columns * (width + 1), -(-len(classes) // columns) * block), "white")
    draw = ImageDraw.Draw(sheet)
    for i, label in enumerate(classes):
        x, top = left + i % columns * (width + 1), i // columns * block
        text = f"class {label}" if font.getlength(f"class {label}") <= width else str(label)
        draw.text((x + width // 2, top + title // 2), text, "black", font, "mm")
        for y, row in enumerate(rows):
            picture = row[i].resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (x, top + title + y * (height + 1)))
    for top in range(title, sheet.height, block):
        for y, seed in enumerate(seeds):
            draw.text((MARGIN, top + y * (height + 1) + height // 2), f"seed {seed}", "black", font, "lm")
    return sheet
