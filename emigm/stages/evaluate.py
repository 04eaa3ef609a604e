"""Score the images of one model at every sampling configuration: FID and the other metrics, and memorisation."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

from tqdm import tqdm

from emigm.config.benchmark import Benchmark
from emigm.data.samples import open_samples
from emigm.io import INDEX, checksums
from emigm.launching import run_stage
from emigm.metrics.measuring import Scorer, cas_of
from emigm.metrics.scores import fid_of_parts
from emigm.stages.context import StageRun


def evaluate(benchmark: Benchmark, size: str) -> None:
    run = StageRun(benchmark, f"evaluate-{size}")
    evaluation, train_seeds = benchmark.evaluation, benchmark.train_config(size).seeds
    scorer = Scorer(benchmark, run.world.device)
    keys = [(budget, t, s) for budget in benchmark.budgets for t in train_seeds for s in evaluation.seeds]
    samples = {key: open_samples(benchmark, size, *key) for key in keys}
    scorer.measure_all(list(samples.values()), run.state, run.world, f"features {benchmark.name}-{size}")
    if not run.goes_on():
        return

    groups, cas = list(itertools.product(benchmark.budgets, train_seeds)), {}
    if (steps := evaluation.cas_steps) is not None:  # of all sampling seeds of a training together
        together = [[samples[(*group, s)] for s in evaluation.seeds] for group in groups]
        cas = dict(zip(groups, run.map(partial(cas_of, benchmark), together, steps, "step"), strict=True))
    results: dict[str, Any] = {budget: {"runs": [], "fid_by_images": []} for budget in benchmark.budgets}
    for (budget, train_seed, seed), of_run in tqdm(samples.items(), desc=f"score {benchmark.name}-{size}", unit="run"):
        features, scored = scorer.score_run(of_run, run.state)
        by_images = {str(evaluation.images): scored["fid"]} | fid_of_parts(features, scorer.reference)
        key, of_training = {"train_seed": train_seed, "sample_seed": seed}, {"cas": cas.get((budget, train_seed))}
        results[budget]["runs"].append(key | scored | of_training)
        results[budget]["fid_by_images"].append(key | {"fid": by_images})
    run.finish(
        results,
        inputs=checksums(*(of_run.folder / INDEX for of_run in samples.values())) | scorer.inputs,
        cas_steps=evaluation.cas_steps,
        extractor_identity=scorer.extract.identity,
        reference_source={k: v for k, v in scorer.reference.facts.items() if k != "inputs"},
    )
    run.clean()


if __name__ == "__main__":
    run_stage(evaluate, "size")
