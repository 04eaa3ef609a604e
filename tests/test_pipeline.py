"""What the pipeline promises: stages depend on all the code they run, and tracked results belong to tracked code."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from emigm.config.compose import compose, composed_text, params_file, sources
from emigm.config.errors import ConfigError
from emigm.verify.findings import Findings
from emigm.verify.pipeline import opened, within

ROOT = Path(__file__).parents[1]
CHAIN = ROOT / "dvc.yaml"
OTHERS = [p for p in sorted((ROOT / "benchmarks").glob("*/dvc.yaml")) if p.read_bytes() != CHAIN.read_bytes()]
STAGES = {
    f"{'chain' if path == CHAIN else path.parent.name}:{name}": stage | {"file": path}
    for path in (CHAIN, *OTHERS)
    for name, stage in yaml.safe_load(path.read_text())["stages"].items()
}
LOCKS = [
    ROOT / name
    for name in sorted(subprocess.check_output(["git", "ls-files", "*dvc.lock"], cwd=ROOT, text=True).split())
]
BENCHMARKS = sources(ROOT)
NOTEBOOKS = {name: yaml.safe_load((ROOT / params_file(name)).read_text())["notebooks"] for name in BENCHMARKS}


def imported_modules(source: str) -> set[str]:
    """Names of the project's modules imported anywhere in the source, function bodies included."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return {n for n in names if n.split(".")[0] == "emigm"}


def module_file(name: str) -> Path | None:
    path = ROOT / Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def import_closure(source: str) -> set[str]:
    """Project files that `source` imports, directly or not, relative to the repository's root."""
    found: set[Path] = set()
    queue = list(imported_modules(source))
    while queue:
        file = module_file(queue.pop())
        if file and file not in found:
            found.add(file)
            queue += imported_modules(file.read_text())
    return {str(f.relative_to(ROOT)) for f in found if f != ROOT / "emigm" / "__init__.py"}


def code_of(stage: dict) -> tuple[set[str], set[str]]:
    """(files a stage runs, project files they import); the notebooks' stage runs the notebooks too."""
    words = stage["cmd"].split()
    assert words[0] == "python", f"unknown kind of command: {stage['cmd']}"
    path = str(Path(*words[2].split(".")).with_suffix(".py")) if words[1] == "-m" else words[1]
    files, imported = {path}, import_closure((ROOT / path).read_text())
    for name in notebooks_of(stage):
        cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
        imported |= import_closure("\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code"))
    return files, imported


def notebooks_of(stage: dict) -> set[str]:
    """Notebooks that a stage executes, for any benchmark."""
    if stage.get("matrix", {}).get("notebook") != "${notebooks}":
        return set()
    if stage["file"] == CHAIN:
        return set().union(*NOTEBOOKS.values())
    return {name for variables in yaml.safe_load(stage["file"].read_text())["vars"] for name in variables["notebooks"]}


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_depends_on_all_project_code_it_imports(name):
    files, imported = code_of(STAGES[name])
    listed = STAGES[name]["deps"]
    missing = sorted(f for f in files | imported if not any(f == d or f.startswith(d + "/") for d in listed))
    assert not missing, f"add to deps: {missing}"


@pytest.mark.parametrize("name", STAGES)
def test_every_code_dependency_is_used(name):
    files, imported = code_of(STAGES[name])
    code = [d for d in STAGES[name]["deps"] if d.startswith("emigm/") and not d.endswith(".csv")]
    stale = [d for d in code if not any(f == d or f.startswith(d + "/") for f in files | imported)]
    assert not stale, f"remove from deps: {stale}"


def test_bytecode_in_a_package_that_stages_depend_on_is_no_change_of_code():
    assert "__pycache__" in (ROOT / ".dvcignore").read_text().split()


def test_every_notebook_is_run_by_a_stage():
    run = set().union(*map(notebooks_of, STAGES.values()))
    assert run == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} - {"explore"}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_composed_file_is_what_its_source_says(name):
    assert (ROOT / params_file(name)).read_text(encoding="utf-8") == composed_text(name, ROOT), "run `emigm compose`"


@pytest.mark.parametrize("notebooks", ["", "notebooks: []", "notebooks: scores"])
def test_a_benchmark_without_notebooks_is_refused_when_it_is_composed(tmp_path, notebooks):
    (tmp_path / "benchmarks" / "mine").mkdir(parents=True)
    (tmp_path / "benchmarks" / "mine" / "benchmark.yaml").write_text(f"title: Mine\n{notebooks}\n")
    with pytest.raises(ConfigError, match=r"mine/benchmark.yaml: notebooks names none; its page shows at least one"):
        compose("mine", tmp_path)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_runs_the_one_chain(name):
    assert (ROOT / params_file(name)).with_name("dvc.yaml").read_bytes() == CHAIN.read_bytes(), "run `emigm compose`"


def test_images_are_shared_by_benchmarks_of_the_same_settings():
    """What a benchmark says of its images must be what the one that makes them does."""
    trees = {name: yaml.safe_load((ROOT / params_file(name)).read_text())["benchmark"] for name in BENCHMARKS}
    for name, tree in trees.items():
        owner = trees[tree["images_of"]]
        assert owner["images_of"] == tree["images_of"], name
        assert [tree[k] for k in ("data", "extractor")] == [owner[k] for k in ("data", "extractor")], name


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.parent.name)
def test_tracked_results_belong_to_the_tracked_code_and_settings(lock):
    """In a clone without data, models and samples: no stage of a benchmark that has run would run again."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    pipeline = str(lock.with_suffix(".yaml").relative_to(ROOT))
    command = ["dvc", "repro", "--dry", "--allow-missing", pipeline]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Running stage" not in done.stdout, f"run `dvc repro {pipeline}`"


def test_every_file_in_results_is_made_by_a_stage():
    """A number nobody can reproduce must not lie in results/."""
    strays = Findings()
    with opened(ROOT) as chain:
        chain.strays("results", strays)
    assert not strays.problems


def test_the_import_closure_sees_imports_inside_functions():
    assert "emigm/autoencoders/autoencoder.py" in import_closure(
        "def f():\n    from emigm.autoencoders import autoencoder"
    )


def test_the_evidence_reads_what_every_last_stage_of_its_benchmarks_makes():
    """`make evidence` runs what the evidence reads, and then verifies all of it."""
    with opened(ROOT) as chain:
        paths = {
            name: [({*map(chain.path, s.outs)}, {*map(chain.path, s.deps)}, s.name) for s in stages]
            for name, stages in chain.stages.items()
        }
    read = {path for _, deps, _ in paths["evidence"] for path in deps}
    for name in sorted({path.split("/")[1] for path in read if path.startswith("results/")} - {"evidence"}):
        needed = {path for _, deps, _ in paths[name] for path in deps} | read
        idle = [s for outs, _, s in paths[name] if not any(within(o, p) or within(p, o) for o in outs for p in needed)]
        assert not idle, (name, idle)
