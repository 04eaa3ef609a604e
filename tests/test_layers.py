"""The layers of the house: a module imports only from lower layers; reports and configuration never import torch."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_pipeline import imported_modules

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"config.errors", "config.parsing", "files", "model.schedules", "model.diffusion"},
    {"artefacts", "config.rules", "config.schema", "config.parts", "config.benchmark", "config.paths"}
    | {"compose", "paper"},
    {"records", "runtime.resume", "runtime.pools", "runtime.launching", "runtime.distributed", "flops"}
    | {"runtime.precision", "runtime.transfer"},
    {"model.weights", "model.backbone", "model.head", "autoencoders", "data"},
    {"metrics.classifier", "metrics.features", "metrics.adm", "metrics.scores", "pictures", "model.model"}
    | {"model.checkpoints"},
    {"metrics.measuring", "metrics.baselines", "training", "gate", "sampling", "report", "hub"},
    {"api", "tools.oracle", "tools.timing", "tools.estimates", "tools.compare", "tools.doctor", "tools.random_files"},
    {"tools.half_precision", "tools.parity", "tools.generate", "tools.bench", "tools.embedded", "tools.fetch"},
    {"cli", "stages", "tools.deep"},
]
"""Lowest first. Modules of one layer may use each other where no circle arises, as Python itself checks."""
PURE = ("model/schedules.py", "model/diffusion.py", "config/errors.py")
"""What anyone can copy as it is: these import nothing of the project."""


def layer_of(module: str) -> int:
    """Of a module below `emigm`, or of the package that stands in one layer as a whole."""
    (found,) = [i for i, layer in enumerate(LAYERS) if {module, module.split(".")[0]} & layer]
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "emigm").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_its_own_and_lower_layers(path):
    imported = imported_modules(path.read_text())
    if path.name == "__init__.py":
        assert not imported
        return
    mine = ".".join(path.relative_to(ROOT / "emigm").with_suffix("").parts)
    used = {".".join(module.split(".")[1:]) for module in imported}
    # Of `from emigm.config.schema import X` the names "config.schema" and "config.schema.X" are listed.
    above = {n for n in used if is_module(n) and layer_of(n) > layer_of(mine)}
    assert not above


def is_module(name: str) -> bool:
    return bool(name) and (ROOT / "emigm" / name.replace(".", "/")).with_suffix(".py").is_file()


@pytest.mark.parametrize("name", PURE)
def test_the_mathematics_imports_nothing_of_the_project(name):
    assert not imported_modules((ROOT / "emigm" / name).read_text())


@pytest.mark.parametrize(
    "module",
    [
        "config.schema",
        "config.parts",
        "paper.settings",
        "records.record",
        "records.verdict",
        "flops",
        "model.schedules",
        "report",
        "cli",
        "stages.notebooks",
    ],
)
def test_what_needs_no_torch_does_not_import_it(module):
    code = f"import sys, emigm.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
