"""What `dvc.yaml` promises: stages depend on all the code they run, and nothing in it is stale."""

import ast
import json
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


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


def code_of(command: str, item: dict[str, str]) -> tuple[str, str]:
    """(file a stage's command runs, its Python source)."""
    words = command.split()
    if words[:2] == ["python", "-m"]:
        path = Path(*words[2].split(".")).with_suffix(".py")
        return str(path), (ROOT / path).read_text()
    assert words[0] == "papermill", f"unknown kind of command: {command}"
    path = words[1].replace("${item.notebook}", item["notebook"])
    cells = json.loads((ROOT / path).read_text())["cells"]
    return path, "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def instances():
    for name, stage in STAGES.items():
        for notebook in stage.get("matrix", {}).get("notebook", [None]):
            yield pytest.param(stage, {"notebook": notebook}, id=f"{name}-{notebook}" if notebook else name)


@pytest.mark.parametrize(("stage", "item"), instances())
def test_every_stage_depends_on_all_project_code_it_imports(stage, item):
    file, source = code_of(stage["cmd"], item)
    listed = {d.replace("${item.notebook}", item["notebook"] or "") for d in stage["deps"]}
    covered = lambda f: any(f == d or f.startswith(d + "/") for d in listed)  # noqa: E731
    missing = sorted(f for f in import_closure(source) | {file} if not covered(f))
    assert not missing, f"add to deps: {missing}"


@pytest.mark.parametrize(("stage", "item"), instances())
def test_every_code_dependency_is_used(stage, item):
    file, source = code_of(stage["cmd"], item)
    used = import_closure(source) | {file}
    listed = [d.replace("${item.notebook}", item["notebook"] or "") for d in stage["deps"]]
    stale = [d for d in listed if d.endswith((".py", ".ipynb")) and d not in used]
    assert not stale, f"remove from deps: {stale}"


def test_the_import_closure_sees_imports_inside_functions():
    assert "emigm/autoencoder.py" in import_closure("def f():\n    from emigm import autoencoder")
