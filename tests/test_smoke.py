"""The whole pipeline, notebooks included, as a user runs it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The pipeline runs `python -m ...`: the interpreter of the tests comes first.
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": "",
    "DVC_NO_ANALYTICS": "1",
}


PIPELINE, PARAMS = "benchmarks/smoke/dvc.yaml", "benchmarks/smoke/params.yaml"


def environment(folder: Path) -> dict[str, str]:
    return {**ENVIRONMENT, "PYTHONPATH": str(folder)}


def run(folder: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
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


def test_the_smoke_benchmark_runs_the_whole_chain(checkout):
    results = checkout / "results" / "smoke"
    records = {p.stem for p in (results / "records").glob("*.json")}
    assert records == {
        "prepare", "extractor", "encode", "reference", "train-xs", "sample-xs-4", "evaluate-xs", "snapshots-xs",
        "reveal-xs",
    }  # fmt: skip
    for name in ("figure1/figure1.png", "figure4/figure4.svg", "scores/scores.md", "table4/table4.csv"):
        assert (results / "notebooks" / name).stat().st_size > 100
    assert json.loads((results / "metrics" / "xs-4.json").read_text())["fid"] > 0
    assert "Dry run" in (results / "README.md").read_text()


def test_a_dry_run_is_marked_in_every_record_and_table(checkout):
    results = checkout / "results" / "smoke"
    assert all(json.loads(p.read_text())["dry_run"] for p in (results / "records").glob("*.json"))
    assert "DRY RUN" in (results / "notebooks" / "scores" / "scores.md").read_text()


def test_records_hold_their_provenance(checkout):
    record = json.loads((checkout / "results" / "smoke" / "records" / "evaluate-xs.json").read_text())
    provenance = record["provenance"]
    # The stages before this one have written dvc.lock, which is no change of code.
    assert provenance["commit"] == run(checkout, "git", "rev-parse", "HEAD").stdout.strip()
    assert provenance["device"].startswith("CPU") and provenance["versions"]["torch"]
    assert record["settings"]["images"] == 60 and record["settings"]["seeds"] == [0, 1]


def test_the_whole_of_it_is_verified(checkout):
    assert run(checkout, "emigm", "verify", "smoke", "--against", "results").returncode == 0


def test_nothing_runs_twice_and_changed_training_reruns_what_depends_on_it(checkout):
    again = run(checkout, "dvc", "repro", PIPELINE).stdout
    assert "Running stage" not in again
    params = checkout / "benchmarks" / "smoke" / "params.yaml"
    before = params.read_text()
    params.write_text(before.replace("steps: 20\n", "steps: 21\n"))
    assert params.read_text() != before
    status = run(checkout, "dvc", "status", PIPELINE).stdout
    params.write_text(before)
    assert "train@xs" in status
    for untouched in ("prepare@smoke", "extractor@smoke", "encode", "reference"):
        assert f":{untouched}:" not in status


def test_an_experiment_leaves_the_results_alone_even_when_killed(checkout):
    before = contents(checkout)
    change = f"{PARAMS}:benchmark.evaluation.cas_steps=10"
    command = ("dvc", "exp", "run", "--temp", "-S", change, f"{PIPELINE}:evaluate@xs")
    process = subprocess.Popen(command, cwd=checkout, env=environment(checkout), start_new_session=True)
    while process.poll() is None and not list((checkout / ".dvc" / "tmp").rglob("reference.npz")):
        time.sleep(0.2)  # the first stage that the change reaches is under way
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert contents(checkout) == before
    run(checkout, *command)
    assert contents(checkout) == before
    assert "cas_steps" in run(checkout, "dvc", "exp", "show", "--json").stdout


def test_a_notebook_run_by_hand_writes_its_own_copy_alone(checkout):
    before = contents(checkout)
    run(checkout, "papermill", "notebooks/scores.ipynb", "out.ipynb", "-p", "benchmark", "smoke")
    after = contents(checkout)
    assert after.pop("out.ipynb") and after == before
    (checkout / "out.ipynb").unlink()


def test_a_model_just_trained_generates(checkout):
    options = ("--classes", "0-9", "--seeds", "0,1", "--out", "grid.png")
    run(checkout, "emigm", "generate", "models/smoke/xs/seed0", *options)
    assert (checkout / "grid.png").stat().st_size > 100
    (checkout / "grid.png").unlink()


def test_metrics_and_plots_are_shown_by_dvc(checkout):
    assert run(checkout, "dvc", "metrics", "diff", "HEAD").returncode == 0
    shown = run(checkout, "dvc", "metrics", "show").stdout.splitlines()
    assert shown[0].split() == ["Path", "fid", "isc"] and max(map(len, shown)) < 120
    assert any(line.startswith("results/smoke/metrics/xs-4.json") for line in shown)
    assert "results/smoke/curves.csv" in run(checkout, "dvc", "plots", "show", "--json").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["emigm.stages.train", "--size", "xxl"], "error: unknown size 'xxl'"),
        (["emigm.stages.sample", "--size", "xs", "--budget", "99"], "error: unknown budget '99'"),
        (["emigm.stages.prepare", "--params", "none.yaml"], "error: none.yaml: no such file"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(checkout, arguments, message):
    done = run(checkout, "python", "-m", *arguments, check=False)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_a_truncated_shard_stops_training_by_name_and_loses_nothing(checkout):
    shard = checkout / "data" / "smoke" / "latents" / "train" / "latents-00000.npy"
    whole = shard.read_bytes()
    shard.unlink()  # DVC may have linked it to its cache
    shard.write_bytes(whole[:-10])
    done = run(checkout, "python", "-m", "emigm.stages.train", "--params", PARAMS, "--size", "xs", check=False)
    shard.write_bytes(whole)
    assert done.returncode == 1 and "latents-00000.npy: shard is truncated" in done.stderr
    assert "Traceback" not in done.stderr
    assert (checkout / "models" / "smoke" / "xs" / "seed0" / "model.safetensors").is_file()


@pytest.fixture
def linked(checkout):
    """The checkout while DVC links what it keeps."""
    run(checkout, "dvc", "config", "--local", "cache.type", "hardlink")
    run(checkout, "dvc", "checkout", "--relink", PIPELINE)
    yield checkout
    run(checkout, "dvc", "config", "--local", "--unset", "cache.type")


def test_images_are_stored_once_where_the_cache_is_linked_and_stages_run_again_on_such_files(linked):
    folder = linked / "samples" / "smoke" / "xs" / "4"

    def files():
        found = {p.name: p for p in folder.rglob("*") if p.is_file()}
        assert found and all(p.stat().st_nlink >= 2 and p.stat().st_mode & 0o222 == 0 for p in found.values())
        return {name: p.read_bytes() for name, p in found.items()}

    before = files()
    run(linked, "dvc", "repro", "--force", "--single-item", f"{PIPELINE}:sample@xs-4")
    assert files() == before
    run(linked, "dvc", "repro", "--force", "--single-item", f"{PIPELINE}:evaluate@xs")
