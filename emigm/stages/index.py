"""Write the page of one benchmark (--benchmark) or of all (--all), from records and executed notebooks."""

from __future__ import annotations

import argparse
from pathlib import Path

from emigm.launching import in_one_line
from emigm.report.pages import benchmark_page, front_page
from emigm.report.tables import write_text


def write_page(benchmark: str | None) -> Path:
    """Write results/<benchmark>/README.md; None: results/README.md, the page of all."""
    path = Path("results") / (benchmark or "") / "README.md"
    write_text(path, benchmark_page(Path(), benchmark) if benchmark else front_page(Path()))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--benchmark", help="write results/<benchmark>/README.md")
    which.add_argument("--all", action="store_true", help="write results/README.md")
    with in_one_line():
        write_page(parser.parse_args().benchmark)


if __name__ == "__main__":
    main()
