"""Write the page of one benchmark (--benchmark) or of all (--all), from records and executed notebooks."""

from __future__ import annotations

import argparse
from pathlib import Path

from emigm.report.pages import write_front, write_page
from emigm.runtime.launching import in_one_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--benchmark", help="write results/<benchmark>/README.md")
    which.add_argument("--all", action="store_true", help="write results/README.md")
    options = parser.parse_args()
    with in_one_line():
        write_front(Path()) if options.all else write_page(Path(), options.benchmark)


if __name__ == "__main__":
    main()
