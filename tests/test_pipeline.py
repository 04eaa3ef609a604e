"""What the pipeline promises: stages depend on all the code they run, and tracked results belong to tracked code. That
results/ holds nothing else is what `emigm verify` finds, which runs beside the tests. And the layers of the house: a
module imports only from lower layers; what needs no torch does not import it."""

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
from emigm.verify.pipeline import within

ROOT = Path(__file__).parents[1]
CHAIN = ROOT / "dvc.yaml"
OTHERS = [p for p in sorted((ROOT / "benchmarks").glob("*/dvc.yaml")) if p.read_bytes() != CHAIN.read_bytes()]
STAGES = {
    f"{'chain' if path == CHAIN else path.parent.name}:{name}": stage | {"file": path}
    for path in (CHAIN, *OTHERS)
    for name, stage in yaml.safe_load(path.read_text())["stages"].items()
}
LOCKS = sorted(subprocess.check_output(["git", "ls-files", "*dvc.lock"], cwd=ROOT, text=True).split())
BENCHMARKS = sources(ROOT)
PARAMS = {name: yaml.safe_load((ROOT / params_file(name)).read_text()) for name in BENCHMARKS}
NUMERIC = ("autoencoders/", "metrics/", "model/", "train.py", "sample.py", "gate.py", "flops.py", "data/images.py",
           "data/photos.py")  # fmt: skip
"""Code below emigm/ that can change a number."""
FORMATS = ("model/checkpoints.py", "model/weights.py")
"""What lies there too and moves bytes alone; tests/test_golden.py guards it, as all else."""
RENDERING = ("summary", "notebook", "page")
"""Stages of seconds, which depend on all that they show with."""


def imported_modules(source: str) -> set[str]:
    """Names of the project's modules imported anywhere in the source, function bodies included."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return {n for n in names if n.split(".")[0] == "emigm"}


def imported_files(source: str) -> set[str]:
    """Files of those modules, from the root of the repository."""
    paths = [Path(*name.split(".")) for name in imported_modules(source)]
    paths = [path.with_suffix(".py") if (ROOT / path.with_suffix(".py")).is_file() else path for path in paths]
    return {path.as_posix() for path in paths if (ROOT / path).is_file()}


def numeric_code(path: str) -> set[str]:
    """The numeric code that a file imports, itself or by way of other numeric code."""
    code: set[str] = set()
    queue = [path]
    while queue:
        files = {file.removeprefix("emigm/") for file in imported_files((ROOT / queue.pop()).read_text())}
        new = {f"emigm/{file}" for file in files if file.startswith(NUMERIC) and file not in FORMATS} - code
        queue += new
        code |= new
    return code


def notebooks_of(stage: dict) -> set[str]:
    """Notebooks that a stage executes, for any benchmark."""
    if stage.get("matrix", {}).get("notebook") != "${notebooks}":
        return set()
    trees = PARAMS.values() if stage["file"] == CHAIN else yaml.safe_load(stage["file"].read_text())["vars"]
    return {name for tree in trees for name in tree["notebooks"]}


@pytest.mark.parametrize("name", [name for name in STAGES if name.startswith("chain:")])
def test_a_stage_depends_on_the_numeric_code_it_imports_and_on_no_other(name):
    """A change of code that cannot change a number makes no result stale."""
    stage = STAGES[name]
    file = Path(*stage["cmd"].split()[2].split(".")).with_suffix(".py")
    needed, code = numeric_code(str(file)), [d for d in stage["deps"] if d.startswith("emigm/")]
    missing = sorted(f for f in needed if not any(within(f, d) for d in code))
    assert not missing, f"add to deps: {missing}"
    if name.partition(":")[2] not in RENDERING:
        assert not [d for d in code if not any(within(f, d) for f in needed) and d != "emigm/pictures.py"]


@pytest.mark.parametrize("name", [name for name in STAGES if name.partition(":")[2] in RENDERING])
def test_a_stage_that_shows_numbers_depends_on_the_code_that_shows_them(name):
    stage = STAGES[name]
    assert {"emigm/records", "emigm/report"} <= set(stage["deps"])
    for notebook in notebooks_of(stage):
        cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
        files = imported_files("\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code"))
        files = {file for file in files if not file.startswith("emigm/config")}
        assert not [file for file in files if not any(within(file, d) for d in stage["deps"])]


def test_every_notebook_is_run_by_a_stage_and_what_editors_and_desktops_drop_is_no_change_of_code():
    run = set().union(*map(notebooks_of, STAGES.values()))
    assert run == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} - {"explore", "_template"}
    dropped = {"__pycache__", ".*.tmp", ".DS_Store", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints", ".nfs*"}
    assert dropped | {".*.sw?", "*~"} <= set((ROOT / ".dvcignore").read_text().splitlines())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_composed_files_are_what_their_sources_say_and_every_benchmark_runs_the_one_chain(name):
    """And what a benchmark says of images and models that another makes is what that one says."""
    path = ROOT / params_file(name)
    assert path.read_text(encoding="utf-8") == composed_text(name, ROOT), "run `emigm compose`"
    assert path.with_name("dvc.yaml").read_bytes() == CHAIN.read_bytes(), "run `emigm compose`"
    tree = PARAMS[name]["benchmark"]
    owner = PARAMS[tree["images_of"]]["benchmark"]
    assert [tree[k] for k in ("images_of", "data", "extractor")] == [
        owner[k] for k in ("images_of", "data", "extractor")
    ]
    owner = PARAMS[tree.get("models_of") or name]["benchmark"]
    for key in ("model", "train", "autoencoder", "weights"):
        assert tree[key] == owner[key], key
    assert all(tree["ladder"][size] == owner["ladder"][size] for size in tree["sizes"])


@pytest.mark.parametrize("notebooks", ["", "notebooks: []", "notebooks: scores"])
def test_a_benchmark_without_notebooks_is_refused_when_it_is_composed(tmp_path, notebooks):
    (tmp_path / "benchmarks" / "mine").mkdir(parents=True)
    (tmp_path / "benchmarks" / "mine" / "benchmark.yaml").write_text(f"title: Mine\n{notebooks}\n")
    with pytest.raises(ConfigError, match=r"mine/benchmark.yaml: notebooks names none; its page shows at least one"):
        compose("mine", tmp_path)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A clone of HEAD, without data: what is tracked, also where a reproduction has changed results here."""
    folder = tmp_path_factory.mktemp("tracked")
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(folder)], check=True)
    return folder


@pytest.mark.parametrize("lock", LOCKS)
def test_tracked_results_belong_to_the_tracked_code_and_settings(tracked, lock):
    """In a clone without data, models and samples: no stage of a benchmark that has run would run again."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    pipeline = lock.replace(".lock", ".yaml")
    command = ["dvc", "repro", "--dry", "--allow-missing", pipeline]
    done = subprocess.run(command, cwd=tracked, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Running stage" not in done.stdout, f"run `dvc repro {pipeline}`"


LAYERS = [
    {"config.errors", "model.schedules", "model.diffusion"},
    {"io", "config.parsing", "config.schema", "config.benchmark", "config.paths", "config.compose", "paper"},
    {"records", "launching", "distributed", "flops", "model.precision"},
    {"model.weights", "model.backbone", "model.head", "autoencoders", "data"},
    {"metrics.classifier", "metrics.features", "metrics.adm", "metrics.scores", "pictures", "model.model"}
    | {"model.checkpoints"},
    {"metrics", "train", "gate", "sample", "report", "verify"},
    {"api", "tools"},
    {"cli", "stages", "verify.deep"},
]
"""Lowest first. Modules of the lowest anyone can copy as they are: they import nothing of the project. Those of another
layer may use each other where no circle arises, as Python itself checks; a package that is named stands for those of
its modules that are not."""


def layer_of(module: str) -> int:
    """Of a module below `emigm`."""
    named = [{i for i, layer in enumerate(LAYERS) if name in layer} for name in (module, module.split(".")[0])]
    return min(named[0] or named[1])


@pytest.mark.parametrize("path", sorted((ROOT / "emigm").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_its_own_and_lower_layers(path):
    imported = imported_modules(path.read_text())
    mine = ".".join(path.relative_to(ROOT / "emigm").with_suffix("").parts)
    if path.name == "__init__.py" or mine in LAYERS[0]:
        assert not imported
        return
    used = {module.partition(".")[2] for module in imported}
    # Of `from emigm.config.schema import X` the names "config.schema" and "config.schema.X" are listed.
    modules = {name for name in used if (ROOT / "emigm" / f"{name.replace('.', '/')}.py").is_file()}
    assert not {name for name in modules if layer_of(name) > layer_of(mine)}


def test_what_needs_no_torch_does_not_import_it():
    modules = ["config.compose", "paper.settings", "records.record", "verify.verdict", "flops", "model.schedules"]
    modules += ["cli", "stages.notebooks", "stages.prepare", "records.frame"]
    modules += [f"report.{path.stem}" for path in (ROOT / "emigm" / "report").glob("*.py")]
    code = "import sys\n" + "".join(f"import emigm.{m}\nassert 'torch' not in sys.modules, '{m}'\n" for m in modules)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
