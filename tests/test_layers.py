"""The layers of the house: a module imports only from lower layers; what needs no torch does not import it."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_pipeline import imported_modules

ROOT = Path(__file__).parents[1]
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
