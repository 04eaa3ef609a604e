"""Generated pages, blocks and report, on records and notebooks made up here; and those of the repository at HEAD."""

# ruff: noqa: RUF001
# × and – are meant.

import json
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from made_up import REPO, edit, write_results
from PIL import Image

from docs.report import render, report_data
from emigm.report.pages import BLOCK, PAGES, anchor, benchmark_page, evidence_page, filled, front_page, main
from emigm.report.tables import NONE, Reading, Table
from emigm.stages.index import write_page

NOTEBOOK = {
    "cells": [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# WHICH: which?\n\nWhat it\nshows."}],
    "metadata": {},
    "nbformat": 4,
    "nbformat_minor": 5,
}
CLAIMS = {
    "Claim": ["Weight 1 trains better", "Truncation helps", "Eats ImageNet", "Truncation helps"],
    "Source": ["Figure 2b", "Figure 2d", "Abstract, Table 2", "Figure 2d"],
    "Of": "the paper",
    "Data": ["MNIST-5k", "MNIST-5k", "ImageNet", "CIFAR-10"],
    "Verdict": ["holds", "not decided", "not run", "not run"],
    "Effect": [
        "one_exp at 16_plain < xs at 16: 5.16 and 14.6, gain 9.43; `c` < d: 2 and 3, gain 1",
        "gain 0.12 [-1.3, 1.6]",
        "–",
        "–",
    ],
}


def execute(folder: Path, name: str, picture: bool = False) -> None:
    """What an executed notebook leaves, with a table of its own."""
    there = folder / "notebooks" / name
    there.mkdir(parents=True)
    text = json.dumps(NOTEBOOK).replace("WHICH", name.capitalize())
    (there / f"{name}.ipynb").write_text(text)
    Reading((f"{name} came out so.",), ("A note on it.",)).save(there)
    if picture:
        Image.new("L", (40, 20)).save(there / f"{name}.png")
    else:
        Table(name, "Title", pd.DataFrame({"Model": ["XS"], "FID": [f"{name} 4.52"]}), ("A note.",)).save(there)


@pytest.fixture
def root(tmp_path):
    folder = write_results(tmp_path)
    write_results(tmp_path, "smoke", dry_run=True, sizes={"xs": 77.0}, seeds=(0,))
    execute(folder, "scores")
    execute(folder, "figure1", picture=True)
    execute(folder, "table4")
    return tmp_path


@pytest.fixture
def reported(root):
    """The same with evidence."""
    evidence = root / "results" / "evidence"
    for name in ("claims", "figure2", "table1"):
        execute(evidence, name, picture=name == "figure2")
    colour = root / "results" / "colour"
    execute(colour, "figure2", picture=True)
    (colour / "README.md").touch()
    Table("claims", "Claims", pd.DataFrame(CLAIMS)).save(evidence / "notebooks" / "claims")
    tally = pd.DataFrame({"Data": ["MNIST-5k", "ImageNet"], "holds": ["17", None]})
    Table("tally", "Tally", tally).save(evidence / "notebooks" / "claims")
    data = pd.DataFrame({"Claim": ["**Turns round**", "Stays"], "Digits": ["holds (+1.2)", "holds"]})
    Table("data", "Claims on several data", data).save(evidence / "notebooks" / "claims")
    Table("table1-second", "Table 1 on photos", pd.DataFrame({"Method": ["MAR"]})).save(evidence / "notebooks/table1")
    return root


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
    (folder / "records/train-xs.json").unlink()  # a size whose training has no record says nothing of the others
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


def test_evidence_has_a_page_with_its_figures_and_the_tally_of_the_ledger(reported):
    front, page = front_page(reported), evidence_page(reported)
    said = "[The ledger of the paper's claims]({}notebooks/claims/claims.md), by data and verdict:\n\n| Data"
    assert said.format("evidence/") in front and said.format("") in page
    assert "- [Figure2: which?](evidence/README.md#figure2-which)\n- [Table1: which?](evidence/README.md)" in front
    assert "## Figure2: which?\n\n![Figure2: which?](notebooks/figure2/figure2.png)" in page
    assert " · [the same figure of colour](../colour/README.md) · [verdicts on the paper's claims](" in page
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


# The report


def text_of(root):
    """The words of the report."""
    html = render(root, "html").decode()
    html = re.sub(r"</?(strong|em|span|code|a)\b[^>]*>", "", html.partition("<body>")[2])
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_the_report_holds_the_numbers_of_the_records_and_of_the_executed_notebooks(reported):
    text = text_of(reported)
    assert "scores 4.52" in text and "scores came out so." in text and "table1 4.52" in text
    assert "MNIST-5k 17" in text and "ImageNet –" in text
    assert "holds 1, not decided 1, not run 1" in text  # of the claims of Figure 2
    assert text.count("Truncation helps") == 1  # which has run on other data
    assert "exp (weight 1) at N = 16 without guidance &lt; XS at N = 16: 5.16 and 14.6, gain 9.43 (first of 2" in text
    assert "Turns round holds (+1.2) Stays holds" in text and "Table 1 on photos Method MAR" in text
    assert "<strong>Turns round</strong>" in render(reported, "html").decode()
    assert "gain 0.12 [-1.3, 1.6]" in text and "Eats ImageNet (Abstract, Table 2, ImageNet)" in text
    assert re.search(r"mnist \S+ 5 24\.0K to 384K 160K 2 × 2 2 1K \d+\.\d", text)
    assert "Figure 1. Which? What it shows. results/mnist/notebooks/figure1/figure1.ipynb" in text
    assert all(f"Figure {n}. not run" in text for n in range(3, 9)) and "smoke" not in text


def test_the_report_is_a_pdf_of_two_to_eight_pages_and_the_same_bytes_again(reported):
    pdf = render(reported)
    assert pdf.startswith(b"%PDF-") and render(reported) == pdf
    assert 2 <= len(render(reported, "png")) <= 8


def test_a_report_without_results_reads_not_run_everywhere(tmp_path):
    write_results(tmp_path, "smoke", dry_run=True, sizes={"xs": 77.0}, seeds=(0,))
    assert report_data(tmp_path)["scores"] is None
    text = text_of(tmp_path)
    assert text.count("not run") > 14 and "Conclusions of the paper: not run." in text and "77" not in text
