"""`emigm verify --deep`: from weights to scores once more, for one random chunk of every model.

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
import torch

from emigm.config.benchmark import Benchmark, load_benchmark
from emigm.config.compose import params_file, sources
from emigm.config.errors import RunError, UserError
from emigm.config.paths import model_folder, results_folder
from emigm.data.samples import open_samples
from emigm.distributed import join
from emigm.launching import Progress, in_turn, parallel
from emigm.metrics.measuring import Scorer
from emigm.records.record import provenance, read_record
from emigm.sample import Sampler
from emigm.verify.equivalence import by_extractor
from emigm.verify.verify import Verification

LEVELS, SHARE = 2, 0.99
"""On another machine, this share of the pixel values lies within so many of 256 levels."""
ROUNDING = 0.01
"""Greatest relative difference of a score on another machine."""
SUMMATION = 1e-6
"""And on the same: libraries add up in an order that depends on the number of threads."""


def generate_again(verifications: Sequence[Verification], seed: int | None = None) -> None:
    """Generate and score a random chunk of every model of every benchmark that is whole; the outcome is added to its
    verification. `seed` is that of the choice of chunks; None: a new one."""
    seed = secrets.randbelow(10**6) if seed is None else seed
    for one in verifications:
        if one.name not in sources() or not one.whole:
            continue
        benchmark = load_benchmark(params_file(one.name))
        world = join(benchmark.run)
        run = parallel if world.is_plain else partial(in_turn, show=True)
        job = partial(again, benchmark, seed, world.device)
        for outcome, problem in run(job, benchmark.sizes, 1, "chunk", f"again {one.name}"):
            if problem:
                one.refuse(f"deep (--seed {seed}): {problem}")
            else:
                one.deep.append(f"{outcome} (--seed {seed})")


def again(benchmark: Benchmark, seed: int, device: str, size: str, progress: Progress) -> tuple[str, str]:
    """(what holds, what does not) of one random chunk of a model; one of them is empty."""
    draw = random.Random(f"{seed} {benchmark.name} {size}")
    budget, evaluation = draw.choice(benchmark.budgets), benchmark.evaluation
    key = draw.choice(benchmark.train_config(size).seeds), draw.choice(evaluation.seeds)
    where = f"{benchmark.name} {size}, N = {budget}, training seed {key[0]}, sampling seed {key[1]}"
    try:
        samples = open_samples(benchmark, size, budget, *key)
        i = draw.randrange(len(samples.ranges))
        start, stop = samples.ranges[i]
        where += f", images {start} to {stop - 1}"
        stored, stored_labels = samples.chunk(i)
        weights, cfg = model_folder(benchmark, size, key[0]), benchmark.sample_config(size, budget)
        sampler = Sampler(benchmark, size, weights, cfg, key[0], device)
        pixels, labels, _ = next(sampler.chunks(key[1], [(start, stop)]))
        if not np.array_equal(labels, stored_labels):
            raise RunError("stored under other classes than those it is generated for")
        records = results_folder(benchmark.name) / "records"
        sampled = read_record(records / f"sample-{size}-{budget}.json")
        evaluated = read_record(records / f"evaluate-{size}.json")
        same = same_machine(sampled, device)
        if problem := differing_pixels(pixels, stored, same):
            raise RunError(problem)
        chunks = ((pixels, labels) if j == i else samples.chunk(j) for j in range(len(samples.ranges)))
        scored = score_again(Scorer(benchmark, device), chunks)
        recorded = next(r for r in evaluated["results"][budget]["runs"] if (r["train_seed"], r["sample_seed"]) == key)
        tolerance = SUMMATION if same and same_machine(evaluated, device) else ROUNDING
        for metric, value in by_extractor(scored).items():
            before = by_extractor(recorded).get(metric)
            near = None not in (value, before) and math.isclose(value, before, rel_tol=tolerance, abs_tol=tolerance)
            if value != before and not near:
                raise RunError(f"{metric} is {value} when scored again, but the record has {before}")
    except UserError as e:
        return "", f"{where}: {e}"
    progress(1)
    exact = "same bytes" if np.array_equal(pixels, stored) else "same images within rounding (another machine)"
    return f"{where}: {exact}, FID {scored['fid']:.5g} again", ""


def differing_pixels(pixels: np.ndarray, stored: np.ndarray, same: bool) -> str:
    """What is wrong with the images made again, uint8 (n, c, h, w), on the `same` machine or not; empty: nothing."""
    if pixels.shape != stored.shape:
        return f"images of shape {pixels.shape}, stored ones of {stored.shape}"
    differences = np.abs(pixels.astype(int) - stored.astype(int))
    if same and differences.any():
        return f"other images than those stored: {np.mean(differences > 0):.1%} of the pixel values differ"
    if (share := np.mean(differences <= LEVELS)) < SHARE:
        return f"other images than those stored: {1 - share:.1%} of the pixel values differ by over {LEVELS} levels"
    return ""


def score_again(scorer: Scorer, chunks: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Scores of one run's images, which are pixels and labels, chunk by chunk."""
    measured, labels = zip(*((scorer.measure(pixels), of_chunk) for pixels, of_chunk in chunks), strict=True)
    features = {name: torch.cat([m[name] for m in measured]) for name in measured[0]}
    return scorer.score(features, np.concatenate(labels) if scorer.extract.classifies else None)


def same_machine(record: dict[str, Any], device: str) -> bool:
    """Whether a record was made by the processor or GPU, and the versions, that are here."""
    here, before = provenance(device), record["provenance"]
    return all(here[k] == before.get(k) for k in ("device", "machine", "python", "versions"))
