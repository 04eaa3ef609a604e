"""Write the page of one benchmark, results/<benchmark>/README.md, from its records and executed notebooks."""

from __future__ import annotations

import argparse
from pathlib import Path

from emigm.launching import in_one_line
from emigm.report.pages import benchmark_page
from emigm.report.tables import write_text


def write_page(benchmark: str) -> Path:
    """Write the page; returns its file."""
    page = Path("results") / benchmark / "README.md"
    write_text(page, benchmark_page(Path(), benchmark))
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benchmark", required=True, help="whose page")
    benchmark = parser.parse_args().benchmark
    with in_one_line():
        print(f"open {write_page(benchmark)}: the tables and figures of {benchmark}")
