"""The site of the results: `python docs/build.py` (`make site`) => site/index.html, which needs no server.

Nothing is written here that another place says: README.md, the protocol, the pages of `emigm.report.pages`, the
executed notebooks, the records, the ledger and the docstrings become pages of Sphinx in the repository's own layout, so
that their links lead to one another. A link to a file that is no page leads to a copy of it.
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
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd
from sphinx.cmd.build import main as sphinx

from emigm.config.errors import UserError
from emigm.paper.claims import Cells, load_claims
from emigm.records.frame import SIZES, benchmarks_with_results, read_all, runs
from emigm.report import conclusions, pages
from emigm.report.blocks import filled
from emigm.report.tables import NONE, NOT_RUN, Table, model_name, saved, write_text
from emigm.verify.verdict import STATUSES

HERE = Path(__file__).resolve().parent
CODE = HERE.parent / "emigm"
DOCUMENTED = ("api.py", "sampling.py", "training.py", "config/schema.py", "model/*.py", "paper/settings.py")
"""Modules of the Python API."""
EVIDENCE = Path("results/evidence/notebooks")
REPRODUCTIONS = Path("docs/reproductions.jsonl")
COLUMNS = ("Identical", "Within tolerance", "Beyond it, by itself", "Different")
"""Columns of the cells that were made again, in the order of `STATUSES`."""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
COLOURS = {
    **dict.fromkeys(("holds", "reproduced", "unchanged", "whole"), "good"),
    **dict.fromkeys(("does not hold", "differs", "not whole"), "bad"),
    "holds at some N only": "mixed",
}
"""Verdict -> its colour; every other one is grey."""


def build(root: Path, out: Path, verified: Path | None = None) -> int:
    """Write the site of the checkout `root` to the folder `out`, by way of build/site; returns Sphinx's exit status.

    Args:
        verified: what `emigm verify --json` wrote; None or not there: that nothing was verified is said.
    """
    source = root / "build" / "site"
    for folder in (source, out):
        shutil.rmtree(folder, ignore_errors=True)
    Pages(root, source).write(verified)
    return sphinx(["-q", "-b", "html", "-c", str(HERE), "-d", str(root / "build" / "doctrees"), str(source), str(out)])


class Pages:
    """The pages of a checkout, by path; all paths are relative to its root."""

    def __init__(self, root: Path, source: Path):
        self.root, self.source = root, source
        self.texts: dict[Path, str] = {}
        self.benchmarks = [name for name in benchmarks_with_results(root) if len(runs(root, [name]))]
        self.executed = sorted(p.relative_to(root) for p in (root / "results").glob("*/notebooks/*/*.ipynb"))

    def write(self, verified: Path | None) -> None:
        """Write all pages below `source`, and copy what they link to."""
        front, _, rest = filled(self.read("README.md"), self.root).partition("\n## ")
        self.add("index.md", self.front(front, verified))
        self.add("README.md", f"# {rest}")
        protocol = filled(self.read("benchmarks/README.md"), self.root)
        self.add("benchmarks/README.md", protocol + menu(["ImageNet and CIFAR-10 <imagenet>"]))
        self.add("benchmarks/imagenet.md", self.read("benchmarks/imagenet.md"))
        across = [named(p) for p in self.executed if p.parts[1] not in self.benchmarks]
        own = menu([f"{name} <{name}/README>" for name in self.benchmarks], "Benchmarks")
        self.add("results/README.md", pages.front_page(self.root) + own + menu(across, "Across benchmarks"))
        for name in self.benchmarks:
            self.add(f"results/{name}/README.md", self.benchmark(name))
        self.add("ledger.md", self.ledger())
        self.api()
        for path in self.executed:
            self.notebook(path)
        done = 0
        while done < len(self.texts):  # a link adds a page
            path = list(self.texts)[done]
            write_text(self.source / path, self.linked(self.texts[path], path.parent))
            done += 1

    def read(self, name: str | Path) -> str:
        return (self.root / name).read_text(encoding="utf-8")

    def add(self, name: str | Path, text: str) -> None:
        self.texts[Path(name)] = whole_numbers(text.replace(pages.GENERATED, "").lstrip())

    # Links

    def linked(self, text: str, folder: Path) -> str:
        """A text whose links are relative to `folder`, with links that hold anywhere on the site."""
        return LINK.sub(partial(self._link, folder), text)

    def _link(self, folder: Path, found: re.Match) -> str:
        image, label, target, anchor = found.groups()
        if re.match(r"[a-z]+:", target):
            return found[0]
        path = Path(target[1:] if target.startswith("/") else os.path.normpath(folder / target))
        if path == EVIDENCE / "claims" / "claims.md":  # its rows sort and filter on a page of their own
            path = Path("ledger.md")
        page = path in self.texts or path in self.executed or path.suffix == ".html"
        if not page and not self.copied(path):  # a folder, say
            return f"*{label}: {NOT_RUN}*" if image else label
        return f"{image}[{label}](/{path.as_posix()}{anchor or ''})"

    def copied(self, path: Path) -> bool:
        """Whether there is such a file in the checkout; it goes to the site, as a page if it can be one."""
        there, here = self.root / path, self.source / path
        if here.is_file():  # drawn for the site
            return True
        if path.parts[0] == ".." or not there.is_file():
            return False
        if path.suffix == ".md":
            self.add(path, there.read_text(encoding="utf-8"))
        else:
            here.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(there, here)
        return True

    # Pages

    def front(self, intro: str, verified: Path | None) -> str:
        """The first screen of README.md with the verdict after its first paragraph."""
        title, first, *others = intro.split("\n\n")
        tally, verdicts = "", self.verdicts()
        if verdicts is not None:
            listed = [
                f"{data}: " + " ".join(f"{badge(verdict)} {n}" for verdict, n in counts.items())
                for data, counts in conclusions.tally(verdicts).items()
            ]
            tally = f"**[The ledger](ledger.md) of the paper's claims**. {'. '.join(listed)}"
        start = ["Results <results/README>", "Ledger <ledger>", "Protocol <benchmarks/README>", "Using it <README>"]
        said = [self.verified(verified), self.reproductions(), tally]
        return "\n\n".join([title, first, *filter(None, said), *others, menu([*start, "Python API <api>"])])

    def reproductions(self) -> str:
        """Verdicts by machine: what runs of the whole pipeline came to, from the lines of `emigm verify --log`."""
        path = self.root / REPRODUCTIONS
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        rows = []
        for line in map(json.loads, lines):
            for name, one in line["benchmarks"].items():
                verdict = badge(line["verdict"].partition(":")[0])
                on = "; ".join(filter(None, (one["devices"][0], line.get("note"))))
                row = {"Run": line["date"], "Benchmark": name, "Verdict": verdict, "On": on}
                row |= {column: one.get(status, 0) for status, column in zip(STATUSES, COLUMNS, strict=True)}
                row |= {"Commit": f"`{(line['commit'] or NONE)[:12]}`"}
                rows.append({key: str(value) for key, value in row.items()})
        return f"**Run again, by machine**\n\n{Table('', '', pd.DataFrame(rows)).markdown(0)}" if rows else ""

    def verified(self, path: Path | None) -> str:
        """The verdict of `emigm verify` with what it rests on."""
        if path is None or not path.is_file():
            return f"{badge('not verified here')} `emigm verify` says whether the results are whole and reproduced."
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = []
        for name, one in found.get("benchmarks", {}).items():
            status = Counter(cell["status"] for cell in one["cells"] if cell["made_again"])
            ours, theirs = one["devices"]
            row = {"Benchmark": name, "Whole": "yes" if one["whole"] else "NO"}
            row |= {column: status[s] for s, column in zip(STATUSES, COLUMNS, strict=True)}
            row |= {"Made on": ours or NONE, f"Results of {found['against']} made on": theirs or NONE}
            rows.append({key: str(value) for key, value in row.items()})
        table = Table("", "", pd.DataFrame(rows)).markdown(0) if rows else ""
        verdict, _, detail = found["verdict"].partition(":")
        return f":::{{container}} verified\n{badge(verdict)} {detail.strip()}\n:::\n\n{table}"

    def benchmark(self, name: str) -> str:
        """The benchmark's page, then its pictures and records."""
        folder = Path("results", name)
        parts = [pages.benchmark_page(self.root, name)]
        moving = gallery(self.pictures(folder / "grids/reveal"), "drawn")
        parts += [f"## How images come about\n\n{moving}"] if moving else []
        parts += [f"## Samples\n\n{gallery(self.pictures(folder / 'grids'))}", f"## Records\n\n{self.records(name)}"]
        return "\n\n".join(parts) + menu(named(p) for p in self.executed if p.is_relative_to(folder))

    def pictures(self, folder: Path) -> Iterator[tuple[Path, str]]:
        """Pictures of a folder with captions made of their names: real images first, then size by size."""
        found = [p.relative_to(self.root) for p in (self.root / folder).glob("*.*png")]
        place = {size: i for i, size in enumerate(("real", *SIZES))}
        split = {p: p.stem.partition("-") for p in found}
        for path in sorted(found, key=lambda p: (place.get(split[p][0], len(place)), len(p.stem), p.stem)):
            size, _, budget = split[path]
            caption = f"{model_name(size)} at {budget}" if budget else size.replace("_", " ").capitalize()
            self.copied(path)
            yield path, "Real images" if size == "real" else caption

    def records(self, name: str) -> str:
        """One row a record, with a link to it."""
        rows = []
        for stage, record in sorted(read_all(self.root, name).items()):
            made, commit = record["provenance"], record["provenance"].get("commit") or NONE
            path = Path("results", record.get("benchmark", name), "records", f"{stage}.json")
            row = {"Record": f"[{stage}](/{path.as_posix()})", "Made": (made.get("date") or NONE)[:10]}
            rows.append(row | {"Device": made.get("device") or NONE, "Commit": f"`{commit[:12]}`"})
        return Table("", "", pd.DataFrame(rows)).markdown(0)

    def notebook(self, path: Path) -> None:
        """An executed notebook, with its code folded and its files below."""
        found = nbformat.reads(self.read(path), as_version=4)
        settings = {"parameters", "injected-parameters"}
        found.cells = [c for c in found.cells if not settings & set(c.metadata.get("tags", ()))]
        for cell in found.cells:
            if cell.cell_type == "markdown":
                cell.source = self.linked(cell.source, Path("notebooks"))  # where it was written
                continue
            cell.metadata["tags"] = ["hide-input"]
            for output in cell.outputs:
                if "text/markdown" in output.get("data", {}):
                    output.data["text/markdown"] = whole_numbers(output.data["text/markdown"])
        others = sorted(p for p in (self.root / path.parent).iterdir() if p.suffix in (".svg", ".csv", ".png"))
        links = [f"[{p.name}](/{path.parent / p.name})" for p in others]
        home = path.parts[1]
        links += [f"[the page of {home}](/results/{home}/README.md)"] if home in self.benchmarks else []
        text = self.linked(f"**Files:** {', '.join(links)}", path.parent)
        found.cells.append(nbformat.v4.new_markdown_cell(text, id="files"))
        write_text(self.source / path, nbformat.writes(found))

    def verdicts(self) -> pd.DataFrame | None:
        """The ledger's rows; None where it has not run."""
        path = self.root / EVIDENCE / "claims" / "claims.csv"
        return pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else None

    def ledger(self) -> str:
        """The ledger's question from its notebook, and its rows with links to figures and records."""
        question = nbformat.reads(self.read("notebooks/claims.ipynb"), as_version=4).cells[0].source
        question, rows = self.linked(question, Path("notebooks")), self.verdicts()
        alone = "---\nhtml_theme.sidebar_secondary.remove: true\n---\n\n"  # the table takes the whole width
        if rows is None:
            return f"{alone}{question}\n\nThe ledger: {NOT_RUN} yet (`make evidence`)."
        claims = load_claims(self.root)
        read: dict[tuple[str, str], list[Cells]] = {}
        for claim in claims.claims:
            for place in claim.at:
                read.setdefault((claim.id, claims.ground(place.benchmark)), []).extend(claim.cells(place))
        cells = [read.get((row.ID, row.Data), []) for row in rows.itertuples()]
        steps = rows.pop("By N")
        rows["Verdict"] = [f"{badge(v)} {'' if n == NONE else n}" for v, n in zip(rows["Verdict"], steps, strict=True)]
        rows["Source"] = list(map(self.figures, rows["Source"], cells))
        effects = rows.columns[-2]
        rows[effects] = [folded(text) for text in rows[effects]]
        rows["Records"] = [", ".join(self.evaluations(one)) or NONE for one in cells]
        reading = saved(self.root / EVIDENCE / "claims" / "reading.md")
        more = f"[How it was judged, and all comparisons](/{EVIDENCE}/claims/claims.ipynb)."
        grid = Table("", "", rows).markdown(0)
        table = f":::{{table}}\n:class: ledger\n\n{grid}:::"
        return f"{alone}{question} {more}\n\n{table}\n\n## What it adds up to\n\n{reading}\n"

    def figures(self, source: str, cells: list[Cells]) -> str:
        """A claim's source with links to the notebooks of its figures and tables: those across benchmarks, or those of
        its own benchmark."""
        found = []
        for kind, numbers in re.findall(r"(Figure|Table)s? (\d\w?(?: and \d)?)", source):
            for number in re.findall(r"\d", numbers):
                name = f"{kind.lower()}{number}"
                homes = [EVIDENCE, *(Path("results", c.benchmark, "notebooks") for c in cells)]
                paths = [p for p in (home / name / f"{name}.ipynb" for home in homes) if p in self.executed]
                found += [(f"{kind} {number}", paths[0])] if paths else []
        if len(found) == 1:
            return f"[{source}](/{found[0][1].as_posix()})"
        links = ", ".join(f"[{label}](/{path.as_posix()})" for label, path in found)
        return f"{source}: {links}" if links else source

    def evaluations(self, cells: list[Cells]) -> list[str]:
        """Links to the records of a claim's cells."""
        stages = [(c.benchmark, "evaluate" if c.snapshot is None else "snapshots", c.size) for c in cells]
        paths = {s: Path("results", s[0], "records", f"{s[1]}-{s[2]}.json") for s in dict.fromkeys(stages)}
        return [f"[{s[0]} {s[2]}](/{p.as_posix()})" for s, p in paths.items() if (self.root / p).is_file()]

    def api(self) -> None:
        """A page a module, and one that lists them with the first sentence of each."""
        rows, names = [], []
        for path in (p for pattern in DOCUMENTED for p in sorted(CODE.glob(pattern)) if p.stem != "__init__"):
            name = ".".join(path.relative_to(CODE.parent).with_suffix("").parts)
            said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            rows.append(f"[`{name}`](/api/{name}.md): {said.splitlines()[0]}")
            names.append(f"{name} <api/{name}>")
            members = f".. automodule:: {name}\n   :members:\n   :special-members: __call__"
            self.add(f"api/{name}.md", f"# `{name}`\n\n```{{eval-rst}}\n{members}\n```\n")
        listed = "\n".join(f"- {row}" for row in rows)
        self.add("api.md", f"# Python API\n\n{listed}\n{menu(names)}")


def badge(verdict: str) -> str:
    """A verdict in its colour."""
    return f"[{verdict}]{{.verdict .{COLOURS.get(verdict, 'open')}}}"


def whole_numbers(text: str) -> str:
    """Text whose "mean ± error %" no line breaks apart."""
    return text.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")


def folded(effects: str, most: int = 2) -> str:
    """Effects of a claim with many comparisons, behind a line that a reader can open."""
    parts = effects.split("; ")
    if len(parts) <= most:
        return "<br>".join(parts)
    return f"<details><summary>{len(parts)} comparisons</summary>{'<br>'.join(parts)}</details>"


def menu(entries: Iterable[str], caption: str = "") -> str:
    """Entries of the site's menu that stand on no page; empty where there are none."""
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    listed = list(entries)
    return "\n".join(["\n\n```{toctree}", *options, "", *listed, "```\n"]) if listed else ""


def named(notebook: Path) -> str:
    """A notebook's entry in the menu: "Figure 4 </results/mnist/notebooks/figure4/figure4>"."""
    name = re.sub(r"(?<=[a-z])(?=\d)", " ", notebook.stem).capitalize()
    return f"{name} </{notebook.with_suffix('').as_posix()}>"


def gallery(pictures: Iterable[tuple[Path, str]], look: str = "pixels") -> str:
    """Pictures with captions side by side."""
    figures = [
        f":::{{figure}} /{path.as_posix()}\n:alt: {caption}\n:class: {look}\n\n{caption}\n:::"
        for path, caption in pictures
    ]
    return "\n".join([f"::::{{container}} gallery {look}", *figures, "::::"]) if figures else ""


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
