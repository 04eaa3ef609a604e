"""The layers of the house: a module imports only from lower layers; reports and configuration never import torch."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_pipeline import imported_modules

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"core"},
    {"data", "autoencoders", "model"},
    {"samples", "pictures", "flops"},
    {"metrics", "training", "sampling", "checkpoints", "report"},
    {"api", "tools"},
    {"cli", "stages"},
]
"""Lowest first. Modules of one layer may use each other where no circle arises, as Python itself checks."""
PURE = ("model/schedules.py", "model/diffusion.py", "core/parsing.py")
"""What anyone can copy as it is: these import nothing of the project."""


def layer_of(name: str) -> int:
    (found,) = [i for i, layer in enumerate(LAYERS) if name in layer]
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "emigm").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_its_own_and_lower_layers(path):
    if path == ROOT / "emigm" / "__init__.py":
        assert not imported_modules(path.read_text())
        return
    mine = path.relative_to(ROOT / "emigm").with_suffix("").parts[0]
    used = {parts[1] for m in imported_modules(path.read_text()) if len(parts := m.split(".")) > 1}
    above = {n for n in used if layer_of(n) > layer_of(mine)}
    assert not above


@pytest.mark.parametrize("name", PURE)
def test_the_mathematics_imports_nothing_of_the_project(name):
    assert not imported_modules((ROOT / "emigm" / name).read_text())


@pytest.mark.parametrize(
    "module",
    ["core.config", "core.paper", "core.records", "flops", "model.schedules", "report", "cli", "stages.notebooks"],
)
def test_what_needs_no_torch_does_not_import_it(module):
    code = f"import sys, emigm.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
