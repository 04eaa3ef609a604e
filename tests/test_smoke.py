"""The whole pipeline, notebooks included, as a user runs it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIPELINE, PARAMS = "benchmarks/smoke/dvc.yaml", "benchmarks/smoke/params.yaml"


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """The pipeline runs `python -m ...`: the interpreter of the tests comes first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the tracked files as a repository of its own, in which the smoke benchmark has run."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", "copy")
    run(folder, "dvc", "repro", PIPELINE)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """What a user has there of results, models and settings: all but caches and git's own files."""
    kept = [p for p in folder.rglob("*") if p.is_file() and not {".git", ".dvc", "__pycache__"} & set(p.parts)]
    return {str(p.relative_to(folder)): p.read_bytes() for p in kept}


def test_the_smoke_benchmark_runs_the_whole_chain_which_marks_the_dry_run_and_notes_where_it_ran(checkout):
    results = checkout / "results" / "smoke"
    records = {p.stem: json.loads(p.read_text()) for p in (results / "records").glob("*.json")}
    stages = "prepare extractor encode reference train-xs sample-xs-4 evaluate-xs snapshots-xs reveal-xs"
    assert set(records) == set(stages.split()) and all(record["dry_run"] for record in records.values())
    for name in ("figure1/figure1.png", "figure4/figure4.svg", "scores/scores.md", "table4/table4.csv"):
        assert (results / "notebooks" / name).stat().st_size > 100
    assert json.loads((results / "metrics" / "xs-4.json").read_text())["fid"] > 0
    assert "Dry run" in (results / "README.md").read_text()
    assert "DRY RUN" in (results / "notebooks" / "scores" / "scores.md").read_text()
    trained, along = (records[stage]["results"] for stage in ("train-xs", "snapshots-xs"))
    half = {"step": 10, "images": 640, "flops": trained["flops"] / 2}
    assert trained["snapshots"] == [half] and [p["step"] for p in along["points"]] == [10, 20]
    assert half.items() <= along["points"][0].items()
    provenance, settings = (records["evaluate-xs"][key] for key in ("provenance", "settings"))
    # The stages before this one have written dvc.lock, which is no change of code.
    assert provenance["commit"] == run(checkout, "git", "rev-parse", "HEAD").stdout.strip()
    assert provenance["device"].startswith("CPU") and provenance["versions"]["torch"]
    assert settings["images"] == 60 and settings["seeds"] == [0, 1]
    run(checkout, "emigm", "verify", "smoke", "--against", "results")


def test_nothing_runs_twice_and_changed_training_reruns_what_depends_on_it(checkout):
    assert "Running stage" not in run(checkout, "dvc", "repro", PIPELINE).stdout
    params = checkout / PARAMS
    before = params.read_text()
    params.write_text(before.replace(" steps: 20\n", " steps: 21\n"))
    assert params.read_text() != before
    status = run(checkout, "dvc", "status", PIPELINE).stdout
    params.write_text(before)
    assert "train@xs" in status
    assert not any(f":{name}:" in status for name in ("prepare@smoke", "extractor@smoke", "encode", "reference"))


def test_an_experiment_leaves_the_results_alone(checkout):
    before, change = contents(checkout), f"{PARAMS}:benchmark.evaluation.cas_steps=10"
    run(checkout, "dvc", "exp", "run", "--temp", "-S", change, f"{PIPELINE}:evaluate@xs")
    assert contents(checkout) == before
    assert "cas_steps" in run(checkout, "dvc", "exp", "show", "--json").stdout


def test_a_notebook_run_by_hand_and_a_model_just_trained_write_their_own_file_alone(checkout):
    before = contents(checkout)
    run(checkout, "papermill", "notebooks/scores.ipynb", "out.ipynb", "-p", "benchmark", "smoke")
    options = ("--classes", "0-9", "--seeds", "0,1", "--out", "grid.png")
    run(checkout, "emigm", "generate", "models/smoke/xs/seed0", *options)
    after = contents(checkout)
    assert b"eMIGM-XS" in after.pop("out.ipynb") and len(after.pop("grid.png")) > 100 and after == before
    for name in ("out.ipynb", "grid.png"):
        (checkout / name).unlink()


CHARTS = {  # colour, x, y; the labels of axes and chart
    "curves.csv": ("size", "step", "loss", "training step", "training loss", "Training loss by size, smoke"),
    "scores.csv": ("budget", "parameters", "fid", "parameters", "FID", "FID and parameters, smoke"),
}


def test_dvc_shows_metrics_and_charts_that_tell_lines_apart_by_colour_and_name_their_axes(checkout):
    run(checkout, "dvc", "metrics", "diff", "HEAD")
    shown = run(checkout, "dvc", "metrics", "show").stdout.splitlines()
    assert max(map(len, shown)) <= 120 and any(line.startswith("results/smoke/metrics/xs-4.json") for line in shown)
    charts = json.loads(run(checkout, "dvc", "plots", "show", "--json").stdout)["data"]
    for file, (colour, x, y, *labels) in CHARTS.items():
        ((chart,),) = [found for name, found in charts.items() if name.endswith(f"results/smoke/{file}")]
        spec, text = chart["content"], json.dumps(chart["content"])
        points, numbers = spec["data"]["values"], spec["data"]["format"]["parse"]  # DVC hands over text
        assert spec["encoding"]["color"]["field"] == colour and spec["encoding"]["x"]["field"] == x
        assert all(f'"{label}"' in text for label in labels) and "<DVC_" not in text
        assert points and all({"size", colour, x, y, "rev"} <= set(point) for point in points)
        assert numbers.keys() >= {x, y} and all(float(point[key]) for point in points for key in numbers)


def test_images_are_stored_once_where_the_cache_is_linked_and_stages_run_again_on_such_files(checkout):
    run(checkout, "dvc", "config", "--local", "cache.type", "hardlink")
    run(checkout, "dvc", "checkout", "--relink", PIPELINE)

    def files():
        kept = {p.name: p for p in (checkout / "samples/smoke/xs/4").rglob("*") if p.is_file()}
        assert kept and all(p.stat().st_nlink >= 2 and p.stat().st_mode & 0o222 == 0 for p in kept.values())
        return {name: p.read_bytes() for name, p in kept.items()}

    before = files()
    run(checkout, "dvc", "repro", "--force", "--single-item", f"{PIPELINE}:sample@xs-4")
    assert files() == before
    run(checkout, "dvc", "repro", "--force", "--single-item", f"{PIPELINE}:evaluate@xs")
