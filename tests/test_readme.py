"""README.md: its commands exist and its links lead somewhere; tests/test_pages.py holds its numbers."""

import re
from pathlib import Path

from emigm.cli import parser

ROOT = Path(__file__).parents[1]


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
