"""What `dvc.yaml` promises: stages depend on all the code they run, and nothing in it is stale."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = (ROOT / "dvc.yaml", *sorted((ROOT / "benchmarks").glob("*/dvc.yaml")))
STAGES = {name: stage for path in FILES for name, stage in yaml.safe_load(path.read_text())["stages"].items()}


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
    for notebook in (ROOT / "notebooks" / f"{word}.ipynb" for word in words):
        if notebook.is_file():
            cells = json.loads(notebook.read_text())["cells"]
            imported |= import_closure("\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code"))
            files.add(f"notebooks/{notebook.name}")
    return files, imported


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


def test_every_notebook_is_run_by_one_stage():
    run = [
        word
        for stage in STAGES.values()
        for word in stage["cmd"].split()
        if (ROOT / "notebooks" / f"{word}.ipynb").is_file()
    ]
    assert sorted(run) == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_every_file_of_a_table_or_figure_in_results_is_made_by_a_stage():
    """A number nobody can reproduce must not lie in results/."""
    made = {next(iter(o)) for s in STAGES.values() for o in s.get("outs", []) if isinstance(o, dict)}
    patterns = [re.compile(re.sub(r"\\\$\\\{[^}]*\\\}", "[^/]+", re.escape(m))) for m in made]
    tracked = [p for p in (ROOT / "results").rglob("*") if p.is_file()]
    strays = [str(p.relative_to(ROOT)) for p in tracked if not any(q.match(str(p.relative_to(ROOT))) for q in patterns)]
    assert not strays


@pytest.mark.parametrize("name", STAGES)
def test_no_stage_has_metrics_or_plots_which_dvc_deletes_when_another_benchmark_runs(name):
    assert not {"metrics", "plots"} & STAGES[name].keys()


def test_the_import_closure_sees_imports_inside_functions():
    assert "emigm/autoencoders/autoencoder.py" in import_closure(
        "def f():\n    from emigm.autoencoders import autoencoder"
    )
