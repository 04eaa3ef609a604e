"""The report in the form that reproducibility venues ask for: `make report` => report.pdf.

docs/report.typ holds what people wrote; every number, table and figure in it is read here, at build time, from records
and from what executed notebooks saved. What has not run says so in its place.
"""

# ruff: noqa: RUF001
# × is meant.
from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from emigm.config.compose import DEFAULT
from emigm.io import write_atomically
from emigm.launching import in_one_line
from emigm.records.frame import benchmarks_with_results, read_all, runs
from emigm.records.record import GitError, git
from emigm.report import conclusions, notes, pages
from emigm.report.tables import NONE, NOT_RUN, Reading, Table, count, load, thousands

TEMPLATE = Path(__file__).resolve().with_suffix(".typ")
OUT = Path("report.pdf")
FIGURES = range(1, 9)
"""The paper's."""
OMITTED = ("(paper)", "Weight", "t ≥", "Encoder", "Params", "FLOPs", "seeds")
"""Parts of names of Table 1's columns that a page has no room for; its notebook has all."""
GROUPS = {
    "training": "Figure 2",
    "sampling": "Figures? (3|7|8)",
    "scaling": "Figure 4|Section 6.*(MNIST|CIFAR)",
    "schedules": "Figures? (5|6)|Table 4",
    "systems": "Tables? 1|Introduction",
    "imagenet": "(Abstract|Tables? (2|3)|Section).*ImageNet",
    "tables": "(Abstract|Tables? (2|3)|Section).*own tables",
}
"""Claims that differ from the paper's setting in the same way -> how "source | data" of them begins."""


def report_data(root: Path) -> dict[str, Any]:
    """All that docs/report.typ shows and does not itself say, of the checkout `root`; dry runs are left out."""
    every = {name: runs(root, [name]) for name in benchmarks_with_results(root)}
    frames = {name: frame for name, frame in every.items() if len(frame) and not notes.is_dry_run(frame)}
    ledger = pages.verdicts(root)
    listed = [] if ledger is None else [claim(row) for row in ledger.to_dict("records")]
    return {
        "commit": commit(root),
        "not_run": NOT_RUN,
        "question": conclusions.QUESTION,
        "tally": rows_of(load(root / pages.LEDGER / "tally")),
        "several": rows_of(load(root / pages.LEDGER / "data")),
        "claims": listed,
        "outcomes": {name: outcome(listed, which) for name, which in GROUPS.items()},
        "scores": rows_of(load(root / "results" / DEFAULT / "notebooks/scores/scores")),
        "scores_said": sentences(load(root / "results" / DEFAULT / "notebooks/scores/reading")),
        "table1": systems(root / "results/evidence/notebooks/table1"),
        "figures": [figure(root, number, list(frames)) for number in FIGURES],
        "benchmarks": [setting(root, name, frame) for name, frame in frames.items()],
        "hours": f"{sum(hours(root, name) for name in frames):.1f}",
    }


def commit(root: Path) -> str | None:
    """Hash of the checkout's commit, twelve digits; None: git does not say."""
    try:
        return git("rev-parse", "--short=12", "HEAD", root=root).decode().strip()
    except GitError:
        return None


def rows_of(table: Table | Reading | None, without: tuple[str, ...] = ()) -> list[list[str]] | None:
    """A saved table as rows of text, the header first; None: it is not there."""
    if table is None:
        return None
    kept = [column for column in table.frame if not any(part in column for part in without)]
    return [kept, *table.frame[kept].fillna(NONE).astype(str).to_numpy().tolist()]


def systems(folder: Path) -> list[dict[str, Any]]:
    """Table 1 on each of the data that it has run on: its title, and its rows."""
    tables = [load(folder / name) for name in ("table1", "table1-second")]
    return [{"title": table.title, "rows": rows_of(table, without=OMITTED)} for table in tables if table]


def sentences(reading: Table | Reading | None) -> list[str]:
    return [] if reading is None else [plain(text) for text in reading.sentences]


def plain(text: str) -> str:
    """Markdown's text alone: links, bold and code without their marks."""
    return re.sub(r"\*\*|`", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text))


def claim(row: dict[str, str]) -> dict[str, str]:
    """A row of the ledger; of several comparisons the first, and how many there are."""
    comparisons = conclusions.in_words(plain(row["Effect"])).split("; ")
    more = f" (first of {len(comparisons)} comparisons)" if len(comparisons) > 1 else ""
    shown = {key.lower(): plain(row[key]) for key in ("Data", "Source", "Claim", "Verdict")}
    return shown | {"of": row.get("Of", ""), "effect": comparisons[0] + more}


def outcome(claims: Sequence[dict[str, str]], which: str) -> str:
    """How the paper's claims whose "source | data" begins so came out: "holds 2, not run 1"."""
    own = [c for c in claims if c["of"] == conclusions.PAPER and re.match(which, f"{c['source']} | {c['data']}")]
    verdicts = pd.Series([c["verdict"] for c in own], dtype=str)
    return ", ".join(f"{verdict} {n}" for verdict, n in verdicts.value_counts(sort=False).items()) or NOT_RUN


def figure(root: Path, number: int, benchmarks: Sequence[str]) -> dict[str, Any]:
    """The paper's figure as drawn of all the evidence or, where it is of one benchmark, as the first of them drew it;
    without a file where none did."""
    name, ladder = f"figure{number}", ["ladder"] if number == 4 else []  # most seeds, and equal compute
    for home in ("evidence", *ladder, *benchmarks):
        if name in pages.executed(root / "results" / home):
            drawn = pages.Notebook(root, Path("results", home), name)
            if drawn.pictures:
                file = f"{name}.png" if f"{name}.png" in drawn.pictures else drawn.pictures[0]
                picture = root / drawn.folder / file
                vector = picture.with_suffix(".svg")
                picture = vector if vector.is_file() else picture
                title = plain(drawn.heading.partition(": ")[2] or drawn.heading)
                facts = {"title": title[:1].upper() + title[1:], "caption": plain(drawn.caption)}
                where = (drawn.folder / f"{name}.ipynb").as_posix()
                return {"number": number, "file": f"/{picture.relative_to(root).as_posix()}", "from": where} | facts
    return {"number": number, "file": None}


def setting(root: Path, name: str, frame: pd.DataFrame) -> list[str]:
    """A benchmark in the table of settings and costs: name, data, models, parameters, images trained on, seeds,
    sampling configurations, images scored, hours."""
    final = frame[frame["snapshot"].isna()]
    seeds = f"{final['train_seed'].nunique()} × {final['sample_seed'].nunique()}"
    cells = [name, notes.data_name(frame), str(final["size"].nunique())]
    cells += [span(final["parameters"], count), span(final["train_images"], count), seeds]
    return [*cells, str(final["budget"].nunique()), span(final["scored_images"], thousands), f"{hours(root, name):.1f}"]


def span(values: pd.Series, text: Any) -> str:
    """The least and the greatest of some numbers."""
    ends = [text(v) for v in (values.min(), values.max()) if pd.notna(v)]
    return " to ".join(dict.fromkeys(ends)) or NONE


def hours(root: Path, name: str) -> float:
    """Hours of processor time that a benchmark's own records say."""
    records = [record for record in read_all(root, name).values() if record["benchmark"] == name]
    return sum(record["provenance"].get("cpu_seconds", 0) for record in records) / 3600


def render(root: Path, kind: str = "pdf") -> bytes:
    """The report of the checkout `root` as a PDF (or "html"), the same bytes for the same results."""
    import typst  # half a second, and nothing else needs it

    options = {"root": str(root.resolve()), "sys_inputs": {"data": json.dumps(report_data(root))}}
    return typst.compile(TEMPLATE.read_bytes(), format=kind, ignore_system_fonts=True, timestamp=0, **options)


def main() -> None:
    """Write report.pdf of the repository in the working directory."""
    with in_one_line():
        write_atomically(OUT, lambda path: path.write_bytes(render(Path())))
    print(f"open {OUT}")


if __name__ == "__main__":
    main()
