"""The layers of the house: a module imports only from lower layers; reports and configuration never import torch."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_pipeline import imported_modules

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"parsing", "schedules", "diffusion", "config", "benchmark"},
    {"records", "paper", "weights", "flops", "distributed", "compose", "workspace"},
    {"backbone", "head", "autoencoder", "codebook", "photos", "images", "latents", "samples"},
    {"classifier", "features", "adm", "metrics", "pictures", "model"},
    {"measuring", "training", "sampling", "checkpoints", "report"},
    {"api", "oracle", "estimates", "compare", "doctor"},
    {"parity"},
    {"cli", "stages"},
]
"""Lowest first. Modules of one layer may use each other where no circle arises, as Python itself checks."""


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
    known = {n for layer in LAYERS for n in layer}
    above = {n for n in used & known if layer_of(n) > layer_of(mine)}
    assert not above


@pytest.mark.parametrize(
    "module", ["config", "flops", "paper", "schedules", "records", "report", "cli", "stages.notebooks"]
)
def test_what_needs_no_torch_does_not_import_it(module):
    code = f"import sys, emigm.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
