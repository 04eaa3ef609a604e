"""README.md: its numbers are those of the records, and its commands exist."""

import re
import subprocess
from pathlib import Path

import pytest
from emigm.report.readme import BEGIN, END, readme_table, update_readme

from emigm.cli import parser

ROOT = Path(__file__).parents[1]


def committed(name: str) -> str:
    """The file at HEAD: somebody's own run may have changed the working tree's results."""
    done = subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{name} is not in a commit here")
    return done.stdout


def test_the_table_in_the_readme_is_the_committed_results(tmp_path):
    (tmp_path / "metrics.csv").write_text(committed("results/digits/table2-metrics.csv"))
    shown = committed("README.md").split(BEGIN)[1].split(END)[0].strip()
    assert shown == readme_table(tmp_path / "metrics.csv")


def test_updating_the_readme_touches_the_table_alone(tmp_path):
    readme, metrics = tmp_path / "README.md", tmp_path / "metrics.csv"
    readme.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    metrics.write_text("Model,N,NFE,FID,IS,KID,Precision\neMIGM-XS,4,4x1.25,3.21,7.0,0.1,0.8\n")
    update_readme(readme, metrics)
    text = readme.read_text()
    assert text.startswith("above\n") and text.endswith("\nbelow\n") and "3.21" in text and "old" not in text


def test_make_targets_and_verbs_named_in_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"(?:^|`)make (\w+)", text, re.M))
    makefile = (ROOT / "Makefile").read_text()
    assert {"reproduce", "test"} <= targets
    assert all(re.search(rf"^{t}:", makefile, re.M) for t in targets)
    verbs = parser()._subparsers._group_actions[0].choices
    assert set(re.findall(r"`emigm (\w+)", text)) <= set(verbs)


def test_the_python_example_in_the_readme_is_at_most_eight_lines():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len([line for line in example.splitlines() if line.strip()]) <= 8
    compile(example, "README.md", "exec")


def test_links_in_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        if "://" not in target:
            assert (ROOT / target).exists(), target
