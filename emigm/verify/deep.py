"""`emigm verify --deep`: from weights to scores once more, for one random chunk of every size.

The chunk is generated from the weights and must have the bytes of the stored one; with it in its place, the images of
its run are scored and must give the scores in the record. On another machine than that of the record (another
processor, GPU or version of what computes) rounding differs, so there pixels and scores must agree within `LEVELS` and
`ROUNDING`.
"""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from emigm.config.benchmark import Benchmark, load_benchmark
from emigm.config.compose import params_file, sources
from emigm.config.errors import UserError
from emigm.config.paths import data_folder, model_folder, results_folder
from emigm.distributed import join
from emigm.metrics.features import extractor_of
from emigm.metrics.scores import load_reference
from emigm.pools import Progress, in_turn, parallel
from emigm.records.record import provenance, read_record
from emigm.stages.evaluate import known_images, measure, open_samples, score
from emigm.stages.sample import Maker
from emigm.verify.verify import Verification

LEVELS, SHARE = 2, 0.99
"""On another machine, this share of the pixel values lies within so many of 256 levels."""
ROUNDING = 0.01
"""Greatest relative difference of a score on another machine."""
SUMMATION = 1e-6
"""And on the same: libraries add up in an order that depends on the number of threads."""


def generate_again(found: Sequence[Verification], seed: int | None = None) -> None:
    """Generate and score a random chunk of every size of every benchmark that is whole; what is found is added to
    `found`.

    Args:
        found: what `emigm.verify.verify` has found.
        seed: of the choice of chunks; None: a new one.
    """
    seed = secrets.randbelow(10**6) if seed is None else seed
    for one in found:
        if one.name not in sources() or not one.whole:
            continue
        benchmark = load_benchmark(params_file(one.name))
        world = join(benchmark.run)
        job = partial(again, benchmark, seed, world.device)
        label = f"again {one.name}"
        run = parallel if world.is_plain else partial(in_turn, show=True)
        for said, problem in run(job, benchmark.sizes, 1, "chunk", label):
            if problem:
                one.findings.refuse(f"deep (--seed {seed}): {problem}")
            else:
                one.deep.append(f"{said} (--seed {seed})")


def again(benchmark: Benchmark, seed: int, device: str, size: str, progress: Progress) -> tuple[str, str]:
    """(what holds, what does not) of one random chunk of a size; one of them is empty."""
    draw = random.Random(f"{seed} {benchmark.name} {size}")
    budget, evaluation = draw.choice(benchmark.budgets), benchmark.evaluation
    run = budget, draw.choice(benchmark.train_config(size).seeds), draw.choice(evaluation.seeds)
    where = f"{benchmark.name} {size}, N = {budget}, training seed {run[1]}, sampling seed {run[2]}"
    try:
        samples = open_samples(benchmark, size, run)
        i = draw.randrange(len(samples.ranges))
        start, stop = samples.ranges[i]
        where += f", images {start} to {stop - 1}"
        stored, labels = samples.chunk(i)
        weights, cfg = model_folder(benchmark, size, run[1]), benchmark.sample_config(size, budget)
        make = Maker(benchmark, size, weights, cfg, run[1], device)
        pixels, made, _ = make(run[2], start, stop)
        if not np.array_equal(labels, made):
            return "", f"{where}: stored under other classes than those it is generated for"
        records = results_folder(benchmark.name) / "records"
        sampled = read_record(records / f"sample-{size}-{budget}.json")
        evaluated = read_record(records / f"evaluate-{size}.json")
        if problem := differing_pixels(pixels, stored, same_machine(sampled, device)):
            return "", f"{where}: {problem}"
        every = ((pixels, made) if j == i else samples.chunk(j) for j in range(len(samples.ranges)))
        scored = scores_of(benchmark, every, device)
        stored_run = next(
            r for r in evaluated["results"][budget]["runs"] if (r["train_seed"], r["sample_seed"]) == run[1:]
        )
        tolerance = SUMMATION if same_machine(sampled, device) and same_machine(evaluated, device) else ROUNDING
        for metric, value in scored.items():
            before = stored_run.get(metric)
            close = value == before or (
                None not in (value, before) and math.isclose(value, before, rel_tol=tolerance, abs_tol=tolerance)
            )
            if not close:
                return "", f"{where}: {metric} is {value} when scored again, but the record has {before}"
    except UserError as e:
        return "", f"{where}: {e}"
    progress(1)
    exact = "same bytes" if np.array_equal(pixels, stored) else "same images within rounding (another machine)"
    return f"{where}: {exact}, FID {scored['fid']:.5g} again", ""


def differing_pixels(pixels: np.ndarray, stored: np.ndarray, same: bool) -> str:
    """What is wrong with the images made again, uint8 (n, c, h, w); empty: nothing."""
    if pixels.shape != stored.shape:
        return f"images of shape {pixels.shape}, stored ones of {stored.shape}"
    differences = np.abs(pixels.astype(int) - stored.astype(int))
    if same and differences.any():
        return f"other images than those stored: {np.mean(differences > 0):.1%} of the pixel values differ"
    if (share := np.mean(differences <= LEVELS)) < SHARE:
        return f"other images than those stored: {1 - share:.1%} of the pixel values differ by over {LEVELS} levels"
    return ""


def scores_of(
    benchmark: Benchmark, chunks: Iterable[tuple[np.ndarray, np.ndarray]], device: str
) -> dict[str, float | None]:
    """Scores of one run's images (pixels and labels, chunk by chunk) as the evaluate stage takes them."""
    extract = extractor_of(benchmark, device)
    known, parts, labels = known_images(benchmark), [], []
    for pixels, of_chunk in chunks:
        parts.append(measure(extract, known, pixels))
        labels.append(of_chunk)
    found = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    reference = load_reference(data_folder(benchmark) / "reference.npz")
    classes = np.concatenate(labels) if extract.classifies else None
    return score(found, reference, classes, benchmark.evaluation.kid_subset)


def same_machine(record: dict[str, Any], device: str) -> bool:
    """Whether a record was made by the processor or GPU, and the versions, that are here."""
    here, there = provenance(device), record["provenance"]
    return all(here[k] == there.get(k) for k in ("device", "machine", "python", "versions"))
