"""A checkout whose results were made up: no number in it was measured; and notebooks run cell by cell."""

import ast
import contextlib
import dataclasses
import functools
import json
import shutil
from pathlib import Path

import nbformat
import numpy as np

from emigm.config.benchmark import load_benchmark
from emigm.config.schema import GateConfig, ModelConfig, SampleConfig, TrainConfig
from emigm.model.schedules import nfe
from emigm.pictures import grid_of, save_png
from emigm.records.record import write_record

REPO = Path(__file__).parents[1]
LADDER = {"xs": 4.02, "s": 2.31, "b": 1.74, "l": 1.12, "h": 0.83}
"""FID of infinitely many steps, by size."""


def checkout(root: Path, *names: str) -> Path:
    """`root` as a folder that notebooks and pages take for a checkout, with copies of these files and folders."""
    (root / "results").mkdir(parents=True, exist_ok=True)
    (root / "dvc.yaml").touch()
    for name in names:
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, root / name, symlinks=True)
        else:
            shutil.copy(REPO / name, root)
    return root


def contents(folder, pattern="*"):
    """Bytes of the files below a folder, by their paths from it."""
    files = [path for path in sorted(Path(folder).rglob(pattern)) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def edit(folder, stage, change):
    """Change the record of a stage in results/<benchmark>, by hand."""
    path = folder / "records" / f"{stage}.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record, indent=2) + "\n")


def cells_of(name):
    """A notebook, and its cells of code."""
    notebook = nbformat.read(REPO / "notebooks" / f"{name}.ipynb", as_version=4)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def run_notebook(name, root, **parameters):
    """Run a notebook's cells in this process, in `root`, as papermill would; returns its variables, and the last value
    of each cell as `_shown`."""
    space = {"_shown": []}
    with contextlib.chdir(root):
        for cell in cells_of(name)[1]:
            *body, last = ast.parse(cell.source).body
            ends_in_value = isinstance(last, ast.Expr)
            exec(compile(ast.Module(body if ends_in_value else [*body, last], []), name, "exec"), space)
            if ends_in_value:
                space["_shown"].append(eval(compile(ast.Expression(last.value), name, "eval"), space))
            if "parameters" in cell.metadata.get("tags", ()):
                assert space.get("out") is None
                space |= parameters
    return space


def write_results(root, name="mnist", *, dry_run=False, sizes=LADDER, budgets=("4", "16"), seeds=(0, 1), samples=(0, 1),
                  snapshots=()):  # fmt: skip
    """Records and grids as the stages write them; returns results/<name>.

    FID of a run is (size's number) × (1 + 2 / N) + 0.1 × training seed + 0.02 × sampling seed, and 1 / share of the
    training more at a snapshot (of 500 images).
    """
    with contextlib.chdir(checkout(root)):  # records go to the working directory's results/
        default = load_benchmark(REPO / "params.yaml")
        bench = dataclasses.replace(default, name=name, images_of=name, title=f"Made-up {name}", dry_run=dry_run)
        write = functools.partial(write_record, bench, device="cpu")
        _prepare(write)
        for i, (size, fid) in enumerate(sizes.items()):
            _train(write, size, i, seeds)
            _score(write, name, size, i, fid, budgets, seeds, samples, snapshots)
        return Path.cwd() / "results" / name


def _prepare(write):
    write("prepare", {"train_images": 4000, "holdout_images": 1000, "classes": 10, "shape": [1, 14, 14]})
    write("extractor", {"features": 64})
    shuffled = {"fid": {"values": [11.0, 11.4]}, "kid": {"values": [0.031, 0.033]}, "images": 1000}
    shuffled |= {"precision": {"mean": 0.5}, "recall": {"mean": 0.4}}
    subset = {"fid": {"values": [0.8, 0.82]}, "images": 1000}
    held_out = {"fid": {"mean": 1.2}, "label_accuracy": {"mean": 0.98}, "images": 1000}
    held_out |= {"precision": {"mean": 0.9}, "recall": {"mean": 0.9}}
    held_out["fid_by_extractor"] = {"0": {"mean": 1.2}, "1": {"mean": 1.7}}
    found = {"holdout": held_out, "train_subset": subset, "class_shuffle": shuffled}
    write("reference", {"baselines": found, "source": {"kind": "training images"}})


def _train(write, size, i, seeds):
    model = ModelConfig(14, 1, 10, 24 + 8 * i, 1, 1, 4, 48, 1, patch=2)
    ratios = {"values": [0.97 if i == 0 and seed == seeds[-1] else 0.7 - 0.02 * i for seed in seeds]}
    trained = {"parameters": 24_000 * 2**i, "flops": int(4e12 * 2**i), "images": 160_000}
    trained |= {"seconds": {"values": [60.0 * 2**i + s for s in seeds]}}
    errors = {"0": {"values": [2.0] * len(seeds)}, "8": {"values": [2 * r for r in ratios["values"]]}}
    trained["context"] = {"errors": errors, "ratio": ratios, "passed": i > 0}
    train = TrainConfig(2500, 64, 3e-3, seeds=tuple(seeds))
    write(f"train-{size}", trained, model=model, train=train, gate=GateConfig((0, 8)))


def _score(write, name, size, i, fid, budgets, seeds, samples, snapshots):
    common = {"seeds": list(samples), "train_seeds": list(seeds)}
    results, rng, grids = {}, np.random.default_rng(i), Path("results") / name / "grids"
    for budget in budgets:
        n = int(budget)
        runs = [
            {"train_seed": t, "sample_seed": s, "fid": fid * (1 + 2 / n) + 0.1 * t + 0.02 * s, "kid": 0.01 * fid,
             "isc": 7 - fid, "sfid": 2 * fid, "label_accuracy": 0.97, "cas": 0.9, "precision": 0.5 + 0.05 * i,
             "recall": 0.5 + 0.1 * i}
            for t in seeds for s in samples
        ]  # fmt: skip
        runs = [r | {"fid_by_extractor": {"0": r["fid"], "1": r["fid"] + 0.5}} for r in runs]
        by_images = [{k: r[k] for k in ("train_seed", "sample_seed")} | {"fid": {"1000": r["fid"], "500": r["fid"] + 1}}
                     for r in runs]  # fmt: skip
        results[budget] = {"runs": runs, "fid_by_images": by_images}
        sample = SampleConfig(n, 12, 2.0, (0.1, 0.4))
        seconds = {"values": [0.0004 * n * 1.5**i + 1e-6 * k for k in range(len(runs))]}
        sampled = {"nfe": nfe(n, 2.0, (0.1, 0.4)), "passes": nfe(n, 2.0, (0.1, 0.4)), "seconds_per_image": seconds}
        write(f"sample-{size}-{budget}", sampled, **common, sample=sample)
        pixels = rng.integers(0, 256, (40, 1, 14, 14), dtype=np.uint8)
        save_png(grids / f"{size}-{budget}.png", grid_of(pixels, 10, 12))
    save_png(grids / "real.png", grid_of(pixels, 10, 12))
    identity = {"extractor_identity": {"kind": "cnn", "sha256": "0" * 64}}
    write(f"evaluate-{size}", results, **common, **identity)
    if snapshots:
        points = [
            {"step": round(2500 * share), "runs": [run | {"fid": run["fid"] + 1 / share} for run in runs]}
            for share in snapshots
        ]
        train = TrainConfig(2500, 64, 3e-3, seeds=tuple(seeds))
        settings = {"size": size, "budget": budgets[-1], "sample": sample, "train": train, "images": 500}
        write(f"snapshots-{size}", {"points": points}, **common, **identity, **settings)
