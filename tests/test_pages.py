"""The generated pages and blocks, on records and executed notebooks made up here; those of the repository at HEAD."""

import json
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from made_up import REPO, edit, write_results

from emigm.report.pages import BLOCK, PAGES, anchor, benchmark_page, evidence_page, filled, front_page, main
from emigm.report.tables import NONE, Reading, Table
from emigm.stages.index import write_page

NOTEBOOK = {
    "cells": [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# WHICH: which?\n\nWhat it\nshows."}],
    "metadata": {},
    "nbformat": 4,
    "nbformat_minor": 5,
}


def execute(folder: Path, name: str, picture: bool = False) -> None:
    """What an executed notebook leaves, with a table of its own."""
    there = folder / "notebooks" / name
    there.mkdir(parents=True)
    text = json.dumps(NOTEBOOK).replace("WHICH", name.capitalize())
    (there / f"{name}.ipynb").write_text(text)
    Reading((f"{name} came out so.",), ("A note on it.",)).save(there)
    if picture:
        (there / f"{name}.png").write_bytes(b"png")
    else:
        Table(name, "Title", pd.DataFrame({"Model": ["XS"], "FID": [f"{name} 4.52"]}), ("A note.",)).save(there)


@pytest.fixture
def root(tmp_path):
    folder = write_results(tmp_path)
    write_results(tmp_path, "smoke", dry_run=True, sizes={"xs": 30.0}, seeds=(0,))
    execute(folder, "scores")
    execute(folder, "figure1", picture=True)
    execute(folder, "table4")
    return tmp_path


def test_the_page_says_what_was_run_and_shows_one_table_and_the_pictures_first_and_folds_the_rest(root):
    page = benchmark_page(root, "mnist")
    shown = re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)
    assert shown.startswith("<!-- Generated") and "# Made-up mnist" in shown
    assert "4,000 training images, 1,000 held-out images, 10 classes" in shown
    assert "Sampling, N = 16: exp schedule, dpm-solver, K = 12, guidance: 2 for 0.1 < s ≤ 0.4." in shown
    assert "seeds: training 0, 1, sampling 0, 1" in shown
    assert shown.count("\n|:") == 1 and "scores 4.52" in shown
    assert "<summary>Table4: which?</summary>" in page and "table4 4.52" in page and "table4 4.52" not in shown
    assert page.count("A note on it.") == 1 and "A note on it." not in shown  # notes stand once a page
    assert "FAILED by training seeds of XS" in page and "0.70, 0.97" in page
    assert page.count("<details>") == page.count("</details>") == 3


def test_a_figure_stands_below_its_question_and_above_what_it_is_made_from_and_where_the_verdicts_are(root):
    ledger = root / "results/evidence/notebooks/claims/claims.md"
    ledger.parent.mkdir(parents=True)
    ledger.touch()
    settings = root / "benchmarks/mnist/benchmark.yaml"
    settings.parent.mkdir(parents=True)
    settings.touch()
    parts = [
        "## Figure1: which?",
        "![Figure1: which?](notebooks/figure1/figure1.png)",
        "*What it shows.*",
        "figure1 came out so.",
        "[notebook](notebooks/figure1/figure1.ipynb) · [records of mnist](records) · "
        "[settings of mnist](../../benchmarks/mnist/benchmark.yaml) · "
        "[verdicts on the paper's claims](../evidence/notebooks/claims/claims.md)",
    ]
    page = benchmark_page(root, "mnist")
    assert "\n\n".join(parts) in page and "[scores.csv](notebooks/scores/scores.csv)" in page


def test_two_kinds_of_pages_differ_in_their_links_alone(root):
    page = benchmark_page(root, "mnist", lambda label, path, at="": f"[{label}](/{path}{at})")
    assert page.replace("(/results/mnist/", "(").replace("(/results/", "(../") == benchmark_page(root, "mnist")


def test_the_page_says_in_what_sizes_differ_and_leaves_out_what_they_share(root):
    assert "| weight" not in benchmark_page(root, "mnist")
    folder = root / "results" / "mnist"
    edit(folder, "train-xs", lambda record: record["settings"]["train"].update(weight="elbo", t_min=None))
    text = re.search(r"\| Model[^\n]*\| Params.*?\n\n", benchmark_page(root, "mnist"), re.DOTALL)[0]
    columns, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()]
    found = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert "schedule" not in columns
    assert (found["eMIGM-XS"]["weight"], found["eMIGM-XS"]["t_min"]) == ("elbo", NONE)
    assert (found["eMIGM-B"]["weight"], found["eMIGM-B"]["t_min"]) == ("one", "0.2")
    (folder / "records" / "train-xs.json").unlink()  # a size whose training has no record says nothing of the others
    page = benchmark_page(root, "mnist")
    assert "| weight" not in page and "| width" in page and "| 32 " in page  # and not 32.0


def test_a_further_table_that_is_wider_than_a_page_is_linked(root):
    folder = root / "results" / "mnist" / "notebooks" / "table4"
    for name, columns in (("narrow", 12), ("wide", 30)):
        Table(name, f"The {name} one", pd.DataFrame([{f"c{i}": "x" for i in range(columns)}])).save(folder)
    page = benchmark_page(root, "mnist")
    assert "<summary>The narrow one</summary>" in page and page.count("| c11") == 1
    assert "[The wide one](notebooks/table4/wide.md)" in page


def test_every_link_of_the_pages_leads_somewhere(root, monkeypatch):
    monkeypatch.chdir(root)
    front = root / "results" / "README.md"
    front.write_text(front_page(root), encoding="utf-8")
    for path in (write_page("mnist"), write_page("smoke"), front):
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)]+)\)", text):
            heading = target.startswith("#") and target[1:] in map(anchor, re.findall("^## (.*)$", text, re.M))
            assert heading or (path.parent / target).exists() or target == "../README.md", target


@pytest.mark.parametrize(
    ("heading", "named"),
    [("Figure 1: what do images look like?", "figure-1-what-do-images-look-like"), ("N = 4 (a)", "n--4-a")],
)
def test_headings_are_named_as_a_git_host_names_them(heading, named):
    assert anchor(heading) == named


def test_a_dry_run_is_marked_on_its_page_and_shows_no_number_on_that_of_all(root):
    assert "# DRY RUN: Made-up smoke" in benchmark_page(root, "smoke")
    page = front_page(root)
    (row,) = [line for line in page.splitlines() if line.startswith("| [")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["[mnist](mnist/README.md)", "MNIST-5k", "5", "40", "0.99 to 6.09", "1K", "1.20", "11.20"]
    assert "**mnist**: scores came out so." in page and "smoke" not in page


def test_evidence_has_a_page_with_its_figures_and_the_tally_of_the_ledger(root):
    folder = root / "results" / "evidence"
    for name in ("claims", "figure2", "table1"):
        execute(folder, name, picture=name == "figure2")
    verdicts = {"ID": list("abcd"), "Verdict": ["holds", "holds", "not run", "does not hold"]}
    verdicts |= {"Of": ["the paper", "the paper", "the paper", "this project"], "Data": "MNIST-5k"}
    Table("claims", "Claims", pd.DataFrame(verdicts), ("The ledger's note.",)).save(folder / "notebooks" / "claims")
    Table("tally", "Tally", pd.DataFrame({"Data": ["MNIST-5k"], "holds": ["2"]})).save(folder / "notebooks" / "claims")
    front, page = front_page(root), evidence_page(root)
    assert (
        "[The ledger of the paper's claims](evidence/notebooks/claims/claims.md), by data and verdict:\n\n| " in front
    )
    assert "[The ledger of the paper's claims](notebooks/claims/claims.md), by data and verdict:\n\n| Data" in page
    assert "- [Figure2: which?](evidence/README.md#figure2-which)\n- [Table1: which?](evidence/README.md)" in front
    assert "## Figure2: which?\n\n![Figure2: which?](notebooks/figure2/figure2.png)" in page
    assert "<summary>Table1: which?</summary>" in page and page.count("A note on it.") == 1
    assert "claims came out so." not in page  # the ledger has a page of its own


def test_without_results_the_page_of_all_says_so(tmp_path):
    (tmp_path / "results").mkdir()
    assert "Benchmarks: not run." in front_page(tmp_path)


def test_filling_blocks_touches_what_stands_between_the_markers_alone(root, monkeypatch):
    path = "results/mnist/notebooks/scores/scores.md"
    (root / "README.md").write_text(f"above\n<!-- block: {path} -->\nold\n<!-- end of block -->\nbelow\n")
    (root / "benchmarks").mkdir()
    (root / "benchmarks" / "README.md").write_text("<!-- block: results/x/reading.md -->\n5.0\n<!-- end of block -->\n")
    monkeypatch.chdir(root)
    main()
    new = (root / "README.md").read_text()
    assert new.startswith(f"above\n<!-- block: {path} -->\n| Model")
    assert new.endswith("|\n<!-- end of block -->\nbelow\n")
    assert "old" not in new and "# Title" not in new and "A note" not in new and "scores 4.52" in new
    assert "\nnot run\n" in (root / "benchmarks" / "README.md").read_text()
    assert filled(new, root) == new


def committed(name: str) -> str | None:
    """The file at HEAD: somebody's own run may have changed the working tree's results."""
    done = subprocess.run(["git", "show", f"HEAD:{name}"], cwd=REPO, capture_output=True, text=True)
    return None if done.returncode else done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_are_the_committed_results(page, tmp_path):
    text = committed(page)
    if text is None:
        pytest.skip("not a git checkout")
    for found in BLOCK.finditer(text):
        for suffix in (".json", ".csv"):
            target = (tmp_path / found["path"]).with_suffix(suffix)
            if (content := committed(target.relative_to(tmp_path).as_posix())) is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(content, encoding="utf-8")
    assert filled(text, tmp_path) == text, "run `make readme`"
