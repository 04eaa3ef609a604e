"""Hand-written pages: their commands exist and their links lead somewhere; CITATION.cff names this version.

tests/test_pages.py holds the numbers."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from PIL import Image
from test_model import random_model

from emigm.cli import parser
from emigm.config.benchmark import load_benchmark
from emigm.model.model import save_model

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/commands.md", "docs/verification.md", "docs/many-machines.md")


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_and_links_exists(page):
    text, makefile = (ROOT / page).read_text(), (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{t}:", makefile, re.M) for t in re.findall(r"(?:^|`)make ([\w-]+)", text, re.M))
    assert set(re.findall(r"`emigm (\w+)", text)) <= set(parser()._subparsers._group_actions[0].choices)
    named = re.findall(r"`((?:benchmarks|emigm|notebooks|tests)/[\w/.]+)`", text) if page == "CONTRIBUTING.md" else []
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in target or ((ROOT / page).parent / target).exists(), target
    assert all((ROOT / name).exists() for name in named), named


def test_the_python_example_is_at_most_eight_lines_and_writes_its_image(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/commands.md").read_text(), re.S)
    assert len([line for line in example.splitlines() if line.strip()]) <= 8
    monkeypatch.chdir(tmp_path)
    benchmark = load_benchmark(ROOT / "params.yaml")
    cfg, space = benchmark.model_config("h"), benchmark.autoencoder.space
    save_model("models/mnist/h/seed0", random_model(cfg).state_dict(), cfg, autoencoder=space)
    exec(compile(example, "commands.md", "exec"), {})
    with Image.open("seven.png") as image:
        assert image.size == (21, 21)


def test_the_citation_is_of_this_version_and_names_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    (paper,) = cited["references"]
    assert paper["title"].startswith("Effective and Efficient Masked") and len(paper["authors"]) == 6


@pytest.mark.parametrize("page", ["benchmarks/imagenet.md", ".github/workflows/gpu.yml"])
def test_whoever_runs_some_sizes_alone_names_one_of_them_for_the_pictures(page):
    """The stage of the pictures needs the model of its size, which no stage would make."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line for line in text.splitlines() if "dvc exp run" in line and re.search(r"sizes=|\$SIZES", line)]
    assert commands and all(re.search(r"reveal=|\$REVEAL", line) for line in commands)
    for sizes, shown in re.findall(r"sizes=\[([a-z,]+)\].*?reveal=\[([a-z]+)\]", text):
        assert shown == sizes.split(",")[-1]
