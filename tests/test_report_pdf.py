"""`make report`: the report holds what records and executed notebooks say, and says what has not run."""

# ruff: noqa: RUF001
# × and – are meant.
import re

import pandas as pd
import pytest
from made_up import write_results
from PIL import Image
from test_pages import execute

from docs.report import render, report_data
from emigm.report.tables import Table

typst = pytest.importorskip("typst", reason="the report is typeset by typst")
CLAIMS = {
    "Claim": ["Weight 1 trains better", "Truncation helps", "Eats ImageNet", "Truncation helps"],
    "Source": ["Figure 2b", "Figure 2d", "Abstract, Table 2", "Figure 2d"],
    "Of": "the paper",
    "Data": ["MNIST-5k", "MNIST-5k", "ImageNet", "CIFAR-10"],
    "Verdict": ["holds", "not decided", "not run", "not run"],
    "Measured": [
        "a (5.16) against b (14.6): lower by 9.43; `c` (2) against d (3): 1",
        "gain 0.12 [-1.3, 1.6]",
        "–",
        "–",
    ],
}


@pytest.fixture
def root(tmp_path):
    folder = write_results(tmp_path)
    write_results(tmp_path, "smoke", dry_run=True, sizes={"xs": 77.0}, seeds=(0,))
    execute(folder, "scores")
    execute(folder, "figure1", picture=True)
    Image.new("L", (40, 20)).save(folder / "notebooks" / "figure1" / "figure1.png")
    evidence = tmp_path / "results" / "evidence"
    execute(evidence, "table1")
    execute(evidence, "claims")
    Table("claims", "Claims", pd.DataFrame(CLAIMS)).save(evidence / "notebooks" / "claims")
    tally = pd.DataFrame({"Data": ["MNIST-5k", "ImageNet"], "holds": ["17", None]})
    Table("tally", "Tally", tally).save(evidence / "notebooks" / "claims")
    return tmp_path


def text_of(root):
    """The words of the report."""
    html = render(root, "html").decode()
    html = re.sub(r"</?(strong|em|span|code|a)\b[^>]*>", "", html.partition("<body>")[2])
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_the_report_holds_the_numbers_of_the_records_and_of_the_executed_notebooks(root):
    text = text_of(root)
    assert "scores 4.52" in text and "scores came out so." in text and "table1 4.52" in text
    assert "MNIST-5k 17" in text and "ImageNet –" in text
    assert "holds 1, not decided 1, not run 1" in text  # of the claims of Figure 2
    assert text.count("Truncation helps") == 1  # which has run on other data
    assert "a (5.16) against b (14.6): lower by 9.43 (first of 2 comparisons)" in text
    assert "gain 0.12 [-1.3, 1.6]" in text and "Eats ImageNet (Abstract, Table 2, ImageNet)" in text
    assert re.search(r"mnist \S+ 5 24\.0K to 384K 160K 2 × 2 2 1K \d+\.\d", text)
    assert "Figure 1. Which? What it shows. results/mnist/notebooks/figure1/figure1.ipynb" in text
    assert all(f"Figure {n}. not run" in text for n in range(2, 9)) and "smoke" not in text


def test_the_report_is_a_pdf_of_two_to_eight_pages_and_the_same_bytes_again(root):
    pdf = render(root)
    assert pdf.startswith(b"%PDF-") and render(root) == pdf
    assert 2 <= len(render(root, "png")) <= 8


def test_without_results_everything_reads_not_run(tmp_path):
    write_results(tmp_path, "smoke", dry_run=True, sizes={"xs": 77.0}, seeds=(0,))
    assert report_data(tmp_path)["scores"] is None
    text = text_of(tmp_path)
    assert text.count("not run") > 14 and "Conclusions of the paper: not run." in text and "77" not in text
