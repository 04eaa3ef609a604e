"""The site of the results: `python docs/build.py` (`make site`) => site/index.html, which needs no server.

README.md, the protocol, the pages of `emigm.report.pages`, the executed notebooks, the records, the ledger and the
docstrings become pages of Sphinx in the repository's own layout, so that their links lead to one another. A link to a
file that is no page leads to a copy of it.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd

from emigm.config.errors import UserError
from emigm.paper.claims import Cell, Claims, load_claims
from emigm.records.frame import SIZES, benchmarks_with_results, read_all, runs
from emigm.report import pages
from emigm.report.tables import NONE, NOT_RUN, Table, body, load, model_name, write_text
from emigm.verify.verdict import STATUSES

HERE = Path(__file__).resolve().parent
GUIDES = {"Using it": "commands", "Your own data": "own-data", "Many machines": "many-machines"}
GUIDES["Verify"] = "verification"
"""Pages of docs/ in the menu, those that are there."""
DOCUMENTED = ("api.py", "sample.py", "train.py", "config/schema.py", "model/*.py", "paper/settings.py")
"""Modules of the Python API."""
COLUMNS = ("Identical", "Within tolerance", "Beyond it, by itself", "Different")
"""Columns of the cells that were made again, in the order of `STATUSES`."""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
"""A link of a page that was written by hand."""
COLOURS = {
    **dict.fromkeys(("holds", "reproduced", "unchanged", "whole"), "good"),
    **dict.fromkeys(("does not hold", "differs", "not whole"), "bad"),
    "no difference that matters": "mixed",
}
"""Verdict -> its colour; every other one is grey."""


def build(root: Path, out: Path, verified: Path | None = None) -> int:
    """Write the site of the checkout `root` to the folder `out`, by way of build/site; returns Sphinx's exit status.

    `verified`: what `emigm verify --json` wrote; None or not there: the site says that nothing was verified.
    """
    from sphinx.cmd.build import main as sphinx  # not among what the pages need

    source = root / "build" / "site"
    for folder in (source, out):
        shutil.rmtree(folder, ignore_errors=True)
    Site(root, source, verified).write()
    return sphinx(["-q", "-b", "html", "-c", str(HERE), "-d", str(root / "build" / "doctrees"), str(source), str(out)])


class Site:
    """The pages of a checkout, by path; all paths are relative to its root."""

    def __init__(self, root: Path, source: Path, verified: Path | None = None):
        self.root, self.source = root, source
        self.benchmarks = [name for name in benchmarks_with_results(root) if len(runs(root, [name]))]
        self.executed = sorted(p.relative_to(root) for p in (root / "results").glob("*/notebooks/*/*.ipynb"))
        self.pages: dict[Path, Callable[[], str]] = {
            Path("index.md"): partial(self.front, verified),
            Path("README.md"): lambda: "# " + self.by_hand("README.md").partition("\n## ")[2],
            Path("benchmarks/README.md"): self.protocol,
            Path("results/README.md"): self.results,
            pages.EVIDENCE / "README.md": self.evidence,
            **{Path("results", name, "README.md"): partial(self.benchmark, name) for name in self.benchmarks},
            Path("ledger.md"): self.ledger,
            **api(),
        }

    def write(self) -> None:
        """Write all pages and notebooks below `source`, and copy what they link to."""
        for path in self.executed:
            self.notebook(path)
        written: set[Path] = set()
        while unwritten := [path for path in self.pages if path not in written]:  # a link adds a page
            for path in unwritten:
                write_text(self.source / path, unbroken(self.pages[path]().replace(pages.GENERATED, "").lstrip()))
            written.update(unwritten)

    def by_hand(self, path: Path | str) -> str:
        """A page that was written by hand, its blocks filled and its links as they hold anywhere on the site."""
        return self.linked(pages.filled((self.root / path).read_text(encoding="utf-8"), self.root), Path(path).parent)

    # Links

    def linked(self, text: str, folder: Path) -> str:
        """A text whose links are relative to `folder`, with links that hold anywhere on the site."""

        def link(match: re.Match) -> str:
            image, label, target, anchor = match.groups()
            if re.match(r"[a-z]+:", target):
                return match[0]
            path = Path(target[1:] if target.startswith("/") else os.path.normpath(folder / target))
            return self.link(label, path, anchor or "", image)

        return LINK.sub(link, text)

    def link(self, label: str, path: Path, anchor: str = "", image: str = "") -> str:
        """A link to a page, or to a copy of a file; a label where there is neither."""
        if path == pages.LEDGER / "claims.md":  # its rows sort and filter on a page of their own
            path = Path("ledger.md")
        elif path.suffix == ".md" and path.with_suffix(".ipynb") in self.executed:  # a notebook's page has its table
            path = path.with_suffix(".ipynb")
        elif path.name == "records" and path.parent.name in self.benchmarks:
            path, anchor = path.with_name("README.md"), "#records"
        if path not in self.pages and path not in self.executed and path.suffix != ".html" and not self.copied(path):
            return f"*{label}: {NOT_RUN}*" if image else label  # a folder, say
        return f"{image}[{label}](/{path.as_posix()}{anchor})"

    def copied(self, path: Path) -> bool:
        """Whether there is such a file in the checkout; it goes to the site, as a page if it can be one."""
        if path.parts[0] == ".." or not (self.root / path).is_file():
            return False
        if path.suffix == ".md":
            self.pages[path] = partial(self.by_hand, path)
        else:
            (self.source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / path, self.source / path)
        return True

    # Pages

    def front(self, verified: Path | None) -> str:
        """The first screen of README.md in another order: what it is, the answer, samples and scores; then how to run
        it, and who has run it again with which verdict."""
        heading, first, *others = self.by_hand("README.md").partition("\n## ")[0].split("\n\n")
        commands = next((i for i, part in enumerate(others) if part.startswith("```")), len(others))
        run = [others.pop(commands) for _ in others[commands : commands + 2]]  # the commands, and what they take
        for i in [i for i, part in enumerate(others) if "| holds " in part]:
            del others[i - 1 : i + 1]  # the tally, with what announces it: it stands first
        pictures = [others.pop(i) for i, part in reversed([*enumerate(others)]) if part.startswith("![")]
        start = ["Results <results/README>", "Ledger <ledger>", "Protocol <benchmarks/README>", "With a GPU <README>"]
        start += [f"{name} <docs/{page}>" for name, page in GUIDES.items() if self.copied(Path("docs", f"{page}.md"))]
        parts = [heading, first, *pictures, pages.tally(self.root, self.link), *others, "## Run it", *run]
        parts += ["## Did it reproduce?", self.verified(verified), self.reproductions()]
        return "\n\n".join([*filter(None, parts), menu([*start, "Python API <api>"])])

    def reproductions(self) -> str:
        """Verdicts by machine: what runs of the whole pipeline came to, from the lines of `emigm verify --log`."""
        path, rows = self.root / "docs/reproductions.jsonl", []
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.is_file() else []):
            for name, one in line["benchmarks"].items():
                row = {"Run": line["date"], "Benchmark": name, "Verdict": badge(line["verdict"].partition(":")[0])}
                row["On"] = "; ".join(filter(None, (one["devices"][0], line.get("note"))))
                row |= {column: one.get(status, 0) for status, column in zip(STATUSES, COLUMNS, strict=True)}
                rows.append(row | {"Commit": f"`{(line['commit'] or NONE)[:12]}`"})
        return f"Runs of the whole pipeline, by machine:\n\n{grid(rows)}" if rows else ""

    def verified(self, path: Path | None) -> str:
        """The verdict of `emigm verify` with what it rests on."""
        if path is None or not path.is_file():
            return f"{badge('not verified here')} `emigm verify` says whether the results are whole and reproduced."
        tree, rows = json.loads(path.read_text(encoding="utf-8")), []
        for name, one in tree.get("benchmarks", {}).items():
            cells, (ours, theirs) = [c for c in one["cells"] if c["made_again"]], one["devices"]
            numbers = Counter(cell["status"] for cell in cells)
            row = {"Benchmark": name, "Whole": "yes" if one["whole"] else "NO"}
            row |= {column: numbers[status] for status, column in zip(STATUSES, COLUMNS, strict=True)}
            rows.append(row | {"Made on": ours or NONE, f"Results of {tree['against']} made on": theirs or NONE})
        verdict, _, detail = tree["verdict"].partition(":")
        return f":::{{container}} verified\n{badge(verdict)} {detail.strip()}\n:::\n\n{grid(rows) if rows else ''}"

    def protocol(self) -> str:
        return self.by_hand("benchmarks/README.md") + menu(["ImageNet and CIFAR-10 <imagenet>"])

    def results(self) -> str:
        across = [entry(path) for path in self.executed if path.parts[1] not in self.benchmarks]
        across.insert(0, "Evidence <evidence/README>")
        own = menu([f"{name} <{name}/README>" for name in self.benchmarks], "Benchmarks")
        return pages.front_page(self.root, self.link) + own + menu(across, "Across benchmarks")

    def evidence(self) -> str:
        return pages.evidence_page(self.root, self.link)

    def benchmark(self, name: str) -> str:
        """The benchmark's page, then its samples and records."""
        folder, rows = Path("results", name), []
        for stage, record in sorted(read_all(self.root, name).items()):
            of = record["provenance"]
            path = Path("results", record.get("benchmark", name), "records", f"{stage}.json")
            row = {"Record": self.link(stage, path), "Made": (of.get("date") or NONE)[:10]}
            rows.append(row | {"Device": of.get("device") or NONE, "Commit": f"`{(of.get('commit') or NONE)[:12]}`"})
        samples = f"## Samples\n\n{gallery(self.pictures(folder / 'grids'))}"
        notebooks = menu(entry(path) for path in self.executed if path.is_relative_to(folder))
        parts = [pages.benchmark_page(self.root, name, self.link), samples, f"## Records\n\n{grid(rows)}{notebooks}"]
        return "\n\n".join(parts)

    def pictures(self, folder: Path) -> Iterator[tuple[Path, str]]:
        """Pictures of a folder with captions made of their names: real images first, then size by size."""
        paths, place = (self.root / folder).glob("*.png"), {size: i for i, size in enumerate(("real", *SIZES))}
        named = [(*p.stem.partition("-")[::2], p.relative_to(self.root)) for p in paths]
        for size, budget, path in sorted(named, key=lambda n: (place.get(n[0], len(place)), len(n[2].stem), n[2].stem)):
            self.copied(path)
            caption = f"{model_name(size)} at {budget}" if budget else size.replace("_", " ").capitalize()
            yield path, "Real images" if size == "real" else caption

    def notebook(self, path: Path) -> None:
        """Write an executed notebook, with its code folded and its files below."""
        notebook = nbformat.read(self.root / path, as_version=4)
        settings = {"parameters", "injected-parameters"}
        notebook.cells = [c for c in notebook.cells if not settings & set(c.metadata.get("tags", ()))]
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = self.linked(cell.source, Path("notebooks"))  # where it was written
                continue
            cell.metadata["tags"] = ["hide-input"]
            for data in (output.get("data", {}) for output in cell.outputs):
                if text := data.get("text/markdown"):
                    data["text/markdown"] = unbroken(self.linked(text, path.parent))
        files = sorted(p for p in (self.root / path.parent).iterdir() if p.suffix in (".svg", ".csv", ".png"))
        links = [self.link(p.name, path.parent / p.name) for p in files]
        if (home := path.parts[1]) in self.benchmarks:
            links.append(self.link(f"the page of {home}", Path("results", home, "README.md")))
        notebook.cells.append(nbformat.v4.new_markdown_cell(f"**Files:** {', '.join(links)}", id="files"))
        write_text(self.source / path, nbformat.writes(notebook))

    def ledger(self) -> str:
        """The ledger's question from its notebook, and its rows with links to figures and records."""
        question = nbformat.read(self.root / "notebooks/claims.ipynb", as_version=4).cells[0].source
        question, rows = self.linked(question, Path("notebooks")), pages.verdicts(self.root)
        alone = "---\nhtml_theme.sidebar_secondary.remove: true\n---\n\n"  # the table takes the whole width
        if rows is None:
            return f"{alone}{question}\n\nThe ledger: {NOT_RUN} yet (`make evidence`)."
        read, comparisons = cells_read(load_claims(self.root)), load(self.root / pages.LEDGER / "comparisons").frame
        tested = comparisons[comparisons["role"] == "test"].groupby(["id", "data"])["measured"].unique()
        cells = [read.get(key, []) for key in zip(rows["ID"], rows["Data"], strict=True)]
        steps = rows.pop("By N")
        rows["Verdict"] = [f"{badge(v)} {'' if n == NONE else n}" for v, n in zip(rows["Verdict"], steps, strict=True)]
        rows["Source"] = list(map(self.figures, rows["Source"], cells))
        rows["Measured"] = [opened(tested[key]) for key in zip(rows["ID"], rows["Data"], strict=True)]
        rows = rows.drop(columns=["Of", "Front", "Effect", "Setting", "Tests", "Limits"])
        rows["Records"] = [", ".join(self.evaluations(one)) or NONE for one in cells]
        more = self.link("How it was judged, and all comparisons", pages.LEDGER / "claims.ipynb")
        table = f":::{{table}}\n:class: ledger\n\n{Table('', '', rows).body}\n:::"
        reading = body(self.root / pages.LEDGER / "reading")
        return f"{alone}{question} {more}.\n\n{table}\n\n## What it adds up to\n\n{reading}\n"

    def figures(self, source: str, cells: list[Cell]) -> str:
        """A claim's source with links to the notebooks of its figures and tables: those across benchmarks, or those of
        its own benchmark."""
        links = []
        for kind, numbers in re.findall(r"(Figure|Table)s? (\d\w?(?: and \d)?)", source):
            for number in re.findall(r"\d", numbers):
                name = f"{kind.lower()}{number}"
                homes = [pages.LEDGER.parent, *(Path("results", c.benchmark, "notebooks") for c in cells)]
                paths = [p for p in (home / name / f"{name}.ipynb" for home in homes) if p in self.executed]
                links += [(f"{kind} {number}", path) for path in paths[:1]]
        if len(links) == 1:
            return self.link(source, links[0][1])
        return ": ".join(filter(None, [source, ", ".join(self.link(*one) for one in links)]))

    def evaluations(self, cells: list[Cell]) -> list[str]:
        """Links to the records of a claim's cells."""
        kinds = [(c.benchmark, c.size, "evaluate" if c.snapshot is None else "snapshots") for c in cells]
        paths = {key: Path("results", key[0], "records", f"{key[2]}-{key[1]}.json") for key in kinds}
        return [self.link(f"{b} {s}", path) for (b, s, _), path in paths.items() if (self.root / path).is_file()]


def cells_read(claims: Claims) -> dict[tuple[str, str], list[Cell]]:
    """(claim, data) -> the cells that its comparisons read."""
    cells: dict[tuple[str, str], list[Cell]] = {}
    for claim in claims.claims:
        for place in claim.at:
            cells.setdefault((claim.id, claims.ground(place.benchmark)), []).extend(claim.cells(place))
    return cells


def api() -> dict[Path, Callable[[], str]]:
    """A page a module, and one that lists them with the first sentence of each."""
    texts, listed = {}, []
    for path in (p for pattern in DOCUMENTED for p in sorted((HERE.parent / "emigm").glob(pattern))):
        name = ".".join(path.relative_to(HERE.parent).with_suffix("").parts)
        if path.stem == "__init__":
            continue
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        listed.append(f"- [`{name}`](/api/{name}.md): {said.splitlines()[0]}\n")
        members = f".. automodule:: {name}\n   :members:\n   :special-members: __call__"
        texts[Path("api", f"{name}.md")] = f"# `{name}`\n\n```{{eval-rst}}\n{members}\n```\n"
    texts[Path("api.md")] = f"# Python API\n\n{''.join(listed)}\n{menu(f'{p.stem} <api/{p.stem}>' for p in texts)}"
    return {path: partial(str, text) for path, text in texts.items()}


def badge(verdict: str) -> str:
    """A verdict in its colour."""
    return f"[{verdict}]{{.verdict .{COLOURS.get(verdict, 'open')}}}"


def grid(rows: list[dict[str, object]]) -> str:
    return Table("", "", pd.DataFrame(rows).astype(str)).body


def unbroken(text: str) -> str:
    """Text whose "mean ± error %" no line breaks apart."""
    return text.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")


def opened(effects: Iterable[str], most: int = 2) -> str:
    """Effects of a claim; those of one with many comparisons behind a line that a reader can open."""
    lines = "<br>".join(effects := list(effects))
    return lines if len(effects) <= most else f"<details><summary>{len(effects)} comparisons</summary>{lines}</details>"


def menu(entries: Iterable[str], caption: str = "") -> str:
    """Entries of the site's menu that stand on no page; empty where there are none."""
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    listed = list(entries)
    return "\n".join(["\n\n```{toctree}", *options, "", *listed, "```\n"]) if listed else ""


def entry(notebook: Path) -> str:
    """A notebook's entry in the menu: "Figure 4 </results/mnist/notebooks/figure4/figure4>"."""
    return f"{pages.title(notebook.stem)} </{notebook.with_suffix('').as_posix()}>"


def gallery(pictures: Iterable[tuple[Path, str]]) -> str:
    """Pictures with captions side by side."""
    figure = ":::{{figure}} /{}\n:alt: {}\n:class: pixels\n\n{}\n:::"
    figures = [figure.format(path.as_posix(), caption, caption) for path, caption in pictures]
    return "\n".join(["::::{container} gallery pixels", *figures, "::::"]) if figures else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=HERE.parent, help="checkout (default: this one)")
    parser.add_argument("--out", type=Path, help="folder to write (default: site/ in the checkout)")
    parser.add_argument("--verified", type=Path, help="what `emigm verify --json` wrote")
    options = parser.parse_args()
    try:
        sys.exit(build(options.root.resolve(), (options.out or options.root / "site").resolve(), options.verified))
    except UserError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
