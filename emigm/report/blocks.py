"""The pages of all results and of the evidence, and the generated blocks of hand-written pages (`make readme`): every
number comes from a file under results/. No stage writes them, since they gather what stages of all benchmarks make.

Between `<!-- block: results/....md -->` and `<!-- end of block -->` stands that table or reading, without its title and
notes; one that is not there yet reads "not run".
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from emigm.report.pages import EVIDENCE, evidence_page, front_page
from emigm.report.tables import body, write_text

PAGES = ("README.md", "benchmarks/README.md")
BLOCK = re.compile(r"(<!-- block: (?P<path>\S+) -->\n)(?P<text>.*?)(\n<!-- end of block -->)", re.DOTALL)


def filled(text: str, root: Path) -> str:
    """A page with all its blocks as the files say."""
    return BLOCK.sub(lambda m: f"{m[1]}{body(root / m['path'])}{m[4]}", text)


def main() -> None:
    """Write the pages and fill all blocks, of the repository in the working directory."""
    write_text(Path("results/README.md"), front_page(Path()))
    if EVIDENCE.is_dir():
        write_text(EVIDENCE / "README.md", evidence_page(Path()))
    for page in map(Path, PAGES):
        before = page.read_text(encoding="utf-8")
        if (after := filled(before, Path())) != before:
            write_text(page, after)
            print(f"{page}: blocks written", file=sys.stderr)


if __name__ == "__main__":
    main()
