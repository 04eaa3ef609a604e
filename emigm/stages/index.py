"""Write the page of one benchmark, results/<benchmark>/README.md, from its records and executed notebooks."""

from __future__ import annotations

import argparse
from pathlib import Path

from emigm.launching import in_one_line
from emigm.report.pages import benchmark_page
from emigm.report.tables import write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benchmark", required=True, help="whose page")
    benchmark = parser.parse_args().benchmark
    page = Path("results") / benchmark / "README.md"
    with in_one_line():
        write_text(page, benchmark_page(Path(), benchmark))
        print(f"{page}: the tables and figures of {benchmark}")


if __name__ == "__main__":
    main()
