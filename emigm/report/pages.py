"""Pages of results, for a git host (results/README.md, results/<benchmark>/README.md) and for the site (docs/build.py).

Nothing is drawn or computed here that a notebook has: a page gathers the tables, pictures and readings that the
notebooks saved, says what was run with which settings, and folds what a first reader does not need. Verdicts on the
paper's claims stand in the ledger alone. The two kinds of pages differ in their links alone.

`make readme` writes the pages of all results and of the evidence, which no stage writes, since they gather what stages
of all benchmarks make, and fills the blocks of hand-written pages: between `<!-- block: results/....md -->` and
`<!-- end of block -->` stands that table or reading without its title and notes, or "not run".
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd

from emigm.records.frame import Records, baselines, benchmarks_with_results, read_all, runs
from emigm.report import conclusions, notes
from emigm.report.statistics import summarise
from emigm.report.tables import (
    NONE,
    NOT_RUN,
    Table,
    body,
    bullets,
    count,
    load,
    missing,
    model_name,
    plural,
    plus_minus,
    thousands,
    write_text,
)

SHOWN = ("scores", "figure1", "reveal", "figure2", "figure3", "figure4", "training")
"""Notebooks whose tables and pictures stand open on a benchmark's page; the others are folded."""
SAME_FOR_A_READER = ("model.head_width", "train.seeds", "train.checkpoint_every")
"""Settings that follow others, or change no model."""
WIDEST = 20
"""Columns of a table that a page holds."""
GENERATED = "<!-- Generated from the records and the executed notebooks (emigm/report/pages.py); edits are lost. -->"
EVIDENCE = Path("results/evidence")
LEDGER = EVIDENCE / "notebooks/claims"
PAGES = ("README.md", "benchmarks/README.md")
BLOCK = re.compile(r"(<!-- block: (?P<path>\S+) -->\n)(?P<text>.*?)(\n<!-- end of block -->)", re.DOTALL)
Link = Callable[..., str]
"""Label, file or folder (a path from the repository's root), "#heading" of a page or nothing -> Markdown."""


def links_from(folder: Path) -> Link:
    """Links of a page in `folder`, as a git host follows them."""
    return lambda label, path, at="": f"[{label}]({Path(os.path.relpath(path, folder)).as_posix()}{at})"


def benchmark_page(root: Path, benchmark: str, link: Link | None = None) -> str:
    """The page of one benchmark: what was run, its scores, pictures with captions, the rest folded."""
    home, frame = Path("results", benchmark), runs(root, [benchmark])
    link = link or links_from(home)
    notebooks = {name: Notebook(root, home, name) for name in executed(root / home)}
    opened = [notebooks[name] for name in SHOWN if name in notebooks]
    others = [one for name, one in notebooks.items() if name not in SHOWN]
    parts = [
        f"# {notes.heading(frame, frame['title'].iloc[0])}",
        bullets(_settings(frame, read_all(root, benchmark))),
        fold("Training, model by model", _training(frame).body),
        rests_on(notes.all_of(frame, baselines(root, benchmark)), notebooks.values()),
        *_shown(opened, others, link),
        f"`emigm verify {benchmark}` says whether these results are whole and reproduce the tracked ones. "
        + link("All benchmarks", Path("results/README.md")),
    ]
    return whole(parts)


def evidence_page(root: Path, link: Link | None = None) -> str:
    """The page of what was read across benchmarks: the tally, then every figure; tables folded."""
    link = link or links_from(EVIDENCE)
    notebooks = [Notebook(root, EVIDENCE, name) for name in executed(root / EVIDENCE) if name != LEDGER.name]
    opened, others = ([one for one in notebooks if bool(one.pictures) == shown] for shown in (True, False))
    parts = [
        "# Evidence across benchmarks",
        tally(root, link),
        rests_on((), notebooks),
        *_shown(opened, others, link),
        link("All benchmarks", Path("results/README.md")),
    ]
    return whole(parts)


def front_page(root: Path, link: Link | None = None) -> str:
    """The page of all benchmarks: one row each, then the evidence across them. Dry runs are listed without numbers."""
    link = link or links_from(Path("results"))
    frames = {name: runs(root, [name]) for name in benchmarks_with_results(root)}
    real = {n: frame for n, frame in frames.items() if len(frame) and not notes.is_dry_run(frame)}  # not data alone
    rows = pd.DataFrame([_row(root, name, frame, link) for name, frame in real.items()])
    default = [f"**{n}**: {body(root / 'results' / n / 'notebooks/scores/reading')}" for n in list(real)[:1]]
    listed = [Notebook(root, EVIDENCE, name) for name in executed(root / EVIDENCE) if name != LEDGER.name]
    page = EVIDENCE / "README.md"
    parts = [
        "# Results",
        Table("", "", rows).body if len(rows) else f"Benchmarks: {NOT_RUN}.",
        "FID: lowest and highest mean over seeds among the benchmark's models and sampling configurations, each of "
        "that many images; to be read between held-out real images and class shuffle (tokens exchanged within a class: "
        "what a model reaches that ignores context). FIDs of different data share no scale.",
        *default,
        *(["## Evidence across benchmarks", tally(root, link)] if executed(root / EVIDENCE) else []),
        bullets(link(one.heading, page, f"#{anchor(one.heading)}" if one.pictures else "") for one in listed),
    ]
    return whole(parts)


def rests_on(first: Iterable[str], notebooks: Iterable[Notebook]) -> str:
    """The notes of a page, folded; each stands once, known by its first words."""
    said: dict[str, str] = {}
    for note in (*first, *(note for one in notebooks for note in one.notes)):
        said.setdefault(note.partition(":")[0], note)
    return fold("What the numbers rest on", bullets(said.values()))


def _shown(opened: list[Notebook], others: list[Notebook], link: Link) -> list[str]:
    """The notebooks of a page, below a list of them: some stand open, the others are folded."""
    folded = [f"folded below: {', '.join(title(one.name) for one in others)}"] if others else []
    contents = " · ".join([*(f"[{title(one.name)}](#{anchor(one.heading)})" for one in opened), *folded])
    texts = [f"## {one.heading}\n\n{one.content(link)}" for one in opened]
    return [contents, *texts, *(fold(one.heading, one.content(link)) for one in others)]


def whole(parts: Iterable[str]) -> str:
    """A page of its parts, without the empty ones."""
    return "\n\n".join(part.rstrip() for part in (GENERATED, *parts) if part) + "\n"


def verdicts(root: Path) -> pd.DataFrame | None:
    """The ledger's rows, all text; None where it has not run."""
    table = load(root / LEDGER / "claims")
    return table and table.frame


def tally(root: Path, link: Link) -> str:
    """How many of the paper's claims came to which verdict, and the few that matter most."""
    rows = verdicts(root)
    if rows is None:
        return f"The ledger of the paper's claims: {NOT_RUN}."
    counts = load(root / LEDGER / "tally")
    few = conclusions.front(rows) if "Front" in rows else ()
    said = link("The ledger of the paper's claims", LEDGER / "claims.md")
    return "\n\n".join(filter(None, [f"{said}, by data and verdict:", counts and counts.body, bullets(few)]))


def anchor(heading: str) -> str:
    """What a git host calls a heading in a link."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def title(name: str) -> str:
    """ "figure4" => "Figure 4"."""
    return re.sub(r"(?<=[a-z])(?=\d)", " ", name).capitalize()


def executed(folder: Path) -> list[str]:
    """Names of the notebooks that were executed for a benchmark, in the order of their names."""
    return sorted(path.stem for path in folder.glob("notebooks/*/*.ipynb") if path.parent.name == path.stem)


class Notebook:
    """An executed notebook, and what it saved in its folder."""

    def __init__(self, root: Path, home: Path, name: str):
        self.root, self.name, self.folder = root, name, home / "notebooks" / name
        files, (first, *cells) = root / self.folder, nbformat.read(root / self.folder / f"{name}.ipynb", 4).cells
        heading, _, text = first.source.partition("\n")
        self.heading, self.caption = heading.lstrip("# "), " ".join(text.split())
        self.pictures = sorted(path.name for path in files.glob("*.png"))
        self.data = sorted(path.name for path in files.iterdir() if path.suffix in (".csv", ".svg"))
        saved = {path.stem: load(path) for path in sorted(files.glob("*.json"))}
        self.reading = saved.pop("reading", None)
        self.tables = sorted(saved.values(), key=lambda table: (table.name != name, table.name))
        parameters = "\n".join(cell.source for cell in cells if "parameters" in str(cell.metadata.get("tags")))
        given = dict(re.findall(r'^(\w+) = "([\w-]+)"', parameters, re.M)).values()
        self.benchmarks = dict.fromkeys([*given] or [home.name])

    @property
    def notes(self) -> list[str]:
        """The notes of its tables and its reading."""
        return [note for one in (*self.tables, self.reading) if one for note in one.notes]

    def content(self, link: Link) -> str:
        """Pictures with what they show as caption, the reading, the table, further tables folded or, where they have
        more columns than a page is wide, linked; then links. No notes: they stand once a page."""
        parts = []
        for file in self.pictures:
            caption = self.caption if Path(file).stem == self.name else Path(file).stem.capitalize()
            parts.append(f"!{link(self.heading, self.folder / file)}\n\n*{caption}*")
        parts.append(self.reading.body if self.reading else NOT_RUN)
        for table in self.tables:
            if table.name == self.name:
                parts.append(table.body)
            elif len(table.frame.columns) > WIDEST:
                parts.append(link(table.title, self.folder / f"{table.name}.md"))
            else:
                parts.append(fold(table.title, table.body))
        return "\n\n".join([*parts, " · ".join(self.links(link))])

    def links(self, link: Link) -> list[str]:
        """What it is made from, as far as it is there: the notebook, its data, records and settings; then the pages of
        other benchmarks with the same figure, and where the verdicts on the paper's claims are."""
        there = {"notebook": self.folder / f"{self.name}.ipynb"} | {file: self.folder / file for file in self.data}
        for one in self.benchmarks:
            there[f"records of {one}"] = Path("results", one, "records")
            there[f"settings of {one}"] = Path("benchmarks", one, "benchmark.yaml")
        if self.name.startswith("figure"):
            for other in sorted(self.root.glob(f"results/*/notebooks/{self.name}/{self.name}.ipynb")):
                if (home := other.parents[2].relative_to(self.root)) not in (EVIDENCE, self.folder.parents[1]):
                    there[f"the same figure of {home.name}"] = home / "README.md"
        if re.match(r"(figure|table)\d", self.name):
            there["verdicts on the paper's claims"] = LEDGER / "claims.md"
        return [link(label, path) for label, path in there.items() if (self.root / path).exists()]


def fold(summary: str, content: str) -> str:
    """Content behind a line that a reader can open."""
    return f"<details>\n<summary>{summary}</summary>\n\n{content.rstrip()}\n\n</details>" if content else ""


def _settings(frame: pd.DataFrame, records: Records) -> list[str]:
    """What was run, with which settings."""
    prepared, own, lines = records.at("prepare", "results") or {}, frame["benchmark"].iloc[0], []
    if "train_images" in prepared:
        lines.append(
            f"Data: {notes.data_name(frame)}; {plural(prepared['train_images'], 'training image')}, "
            f"{plural(prepared['holdout_images'], 'held-out image')}, {prepared['classes']} classes."
        )
    kinds = {"training": frame["train_seed"].dropna(), "sampling": frame["sample_seed"].dropna()}
    seeds = [
        f"{kind} {', '.join(f'{n:g}' for n in sorted(some.unique()))}" for kind, some in kinds.items() if len(some)
    ]
    lines.append(f"Models: {', '.join(map(model_name, frame['size'].unique()))}; seeds: {', '.join(seeds)}.")
    plain = notes.named_by_steps(frame)
    for budget in plain:
        rows = frame[frame["budget"] == budget].dropna(subset=["N"]).to_dict("records")
        texts = ["{Schedule} schedule, {Solver}, guidance: {Guidance}".format(**notes.sampling(row)) for row in rows]
        lines.append(f"Sampling, N = {budget}: {'; or '.join(dict.fromkeys(texts))}.")
    if others := set(frame["budget"].dropna()) - set(plain):
        lines.append(f"Sampling: {plural(len(others), 'further setting' if plain else 'setting')}, each in the table.")
    seconds = sum(r["provenance"].get("cpu_seconds", 0) for r in records.values() if r["benchmark"] == own)
    took = f"; {seconds / 3600:.1f} hours of processor time in all" if seconds else ""
    return [*lines, f"Machine: {' and '.join(sorted(frame['device'].dropna().unique()))}{took}."]


def _training(frame: pd.DataFrame) -> Table:
    """Architecture and recipe where sizes differ, under the names of benchmark.yaml; parameters, compute and context
    gate of every size."""
    final, rows = frame[frame["snapshot"].isna()], []
    models = final.drop_duplicates("size").dropna(subset=["parameters"])  # the others have not been trained
    settings = models[[c for c in models if c.startswith(("model.", "train.")) and c not in SAME_FOR_A_READER]]
    differing = [c for c in settings if settings[c].nunique(dropna=False) > 1]
    for size, group in final.groupby("size", sort=False):
        one, seeds = group.iloc[0], group.drop_duplicates("train_seed")
        ratios = [f"{r:.2f}" for r in seeds["gate_ratio"].dropna()]
        row = {"Model": model_name(size)} | {c.partition(".")[2]: setting(one[c]) for c in differing}
        row["Params"] = count(one["parameters"])
        row["Images seen"] = NONE if missing(one["train_images"]) else count(one["train_images"])
        row["Training FLOPs"] = NONE if missing(one["flops"]) else f"{one['flops']:.2e}"
        row["Context gate, each seed"] = ", ".join(ratios) or NONE
        rows.append(row | {"Passed": NONE if not ratios else "yes" if seeds["gate_passed"].all() else "NO"})
    return Table("training", "Training", pd.DataFrame(rows))


def setting(value: object) -> str:
    """A setting as benchmark.yaml has it; a dash where there is none."""
    if isinstance(value, (bool, np.bool_)):
        return str(value).lower()
    return NONE if missing(value) else f"{value:.10g}" if isinstance(value, float) else f"{value}"


def _row(root: Path, name: str, frame: pd.DataFrame, link: Link) -> dict[str, str]:
    """A benchmark in the table of all."""
    final = frame[frame["snapshot"].isna()]
    cells = summarise(final, "fid", also=("scored_images",))
    real = baselines(root, name)
    fids = real[real["metric"] == "fid"].set_index("baseline")["mean"]
    low, high = cells["mean"].min(), cells["mean"].max()
    return {
        "Benchmark": link(name, Path("results", name, "README.md")),
        "Data": notes.data_name(frame),
        "Models": str(final["size"].nunique()),
        "Runs": f"{final['fid'].notna().sum():,}",
        "FID": NOT_RUN if missing(low) else f"{low:.2f} to {high:.2f}",
        "Images": " or ".join(map(thousands, cells["scored_images"].dropna().unique())) or NONE,
        "Held-out": plus_minus(fids.get("holdout"), absent=NONE),
        "Class shuffle": plus_minus(fids.get("class_shuffle"), absent=NONE),
    }


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
