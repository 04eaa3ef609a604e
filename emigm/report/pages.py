"""Pages that a git host shows: results/<benchmark>/README.md and results/README.md.

Nothing is drawn or computed here that a notebook has: a page gathers the tables, pictures and readings that the
notebooks saved, says what was run with which settings, and folds what a first reader does not need.
"""

from __future__ import annotations

import re
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
    bullets,
    count,
    missing,
    model_name,
    plural,
    plus_minus,
    saved,
    saved_notes,
    thousands,
)

SHOWN = ("scores", "figure1", "reveal", "figure4", "training")
"""Notebooks whose tables and pictures stand open on a benchmark's page; the others are folded."""
SAME_FOR_A_READER = ("model.head_width", "train.seeds", "train.checkpoint_every")
"""Settings that follow others, or change no model."""
WIDEST = 20
"""Columns of a table that a page holds."""
GENERATED = "<!-- Generated from the records and the executed notebooks (emigm/report/pages.py); edits are lost. -->"


def benchmark_page(root: Path, benchmark: str) -> str:
    """The page of one benchmark: what was run, its scores, pictures with captions, the rest folded."""
    folder, frame = root / "results" / benchmark, runs(root, [benchmark])
    parts = [GENERATED, f"# {notes.heading(frame, frame['title'].iloc[0])}"]
    parts.append(f"`emigm verify {benchmark}` says whether these results are whole and reproduce the tracked ones.")
    lines = _settings(frame, read_all(root, benchmark))
    parts.append(bullets(lines))
    parts.append(_folded("Training, size by size", _training(frame).markdown(0)))
    said = {note.partition(":")[0]: note for note in notes.all_of(frame, baselines(root, benchmark))}
    for path in sorted(folder.glob("notebooks/*/*.md")):  # what the notebooks say of their own tables
        for note in saved_notes(path):
            said.setdefault(note.partition(":")[0], note)
    parts.append(_folded("What the numbers rest on", bullets(said.values())))
    shown = [name for name in SHOWN if name in executed(folder)]
    others = [name for name in executed(folder) if name not in SHOWN]
    headings = {name: _first_cell(folder, name)[0] for name in shown}
    contents = [f"[{_title(name)}](#{anchor(heading)})" for name, heading in headings.items()]
    parts.append(" · ".join([*contents, *([f"folded below: {', '.join(map(_title, others))}"] if others else [])]))
    parts += [f"## {heading}\n\n{_content(folder, name)}" for name, heading in headings.items()]
    parts += [_folded(_first_cell(folder, name)[0], _content(folder, name)) for name in others]
    parts.append("[All benchmarks](../README.md)")
    return "\n\n".join(filter(None, parts)) + "\n"


def front_page(root: Path) -> str:
    """The page of all benchmarks: one row each, then the evidence across them. Dry runs are listed without numbers."""
    frames = {name: runs(root, [name]) for name in benchmarks_with_results(root)}
    found = {name: frame for name, frame in frames.items() if len(frame)}  # others have prepared data alone
    real = {name: frame for name, frame in found.items() if not notes.is_dry_run(frame)}
    rows = [_row(root, name, frame) for name, frame in real.items()]
    parts = [GENERATED, "# Results"]
    parts.append(Table("", "", pd.DataFrame(rows)).markdown(0).rstrip() if rows else f"Benchmarks: {NOT_RUN}.")
    parts.append(
        "FID: lowest and highest mean over seeds among the benchmark's models and sampling budgets, each of that many "
        "images; to be read between held-out real images and class shuffle (tokens exchanged within a class: what a "
        "model reaches that ignores context). FIDs of different data share no scale."
    )
    parts += [
        f"**{name}**: {saved(root / 'results' / name / 'notebooks/scores/reading.md')}" for name in list(real)[:1]
    ]
    folder = root / "results" / "evidence"
    if names := executed(folder):
        parts += ["## Evidence across benchmarks", tally(folder)]
        parts += [_folded(_first_cell(folder, name)[0], _content(folder, name, "evidence/")) for name in names]
    return "\n\n".join(filter(None, parts)) + "\n"


def tally(folder: Path) -> str:
    """How many of the paper's claims came to which verdict, from the ledger's CSV."""
    path = next(iter(sorted(folder.rglob("claims.csv"))), None)
    if path is None:
        return f"The ledger of the paper's claims: {NOT_RUN}."
    link = f"{folder.name}/{path.relative_to(folder).with_suffix('.md').as_posix()}"
    told = conclusions.told(conclusions.tally(pd.read_csv(path, dtype=str)))
    return f"[The ledger of the paper's claims]({link}): {' '.join(told)}"


def anchor(heading: str) -> str:
    """What a git host calls a heading in a link."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _title(name: str) -> str:
    """ "figure4" => "Figure 4"."""
    return re.sub(r"(?<=[a-z])(?=\d)", " ", name).capitalize()


def executed(folder: Path) -> list[str]:
    """Names of the notebooks that were executed for a benchmark, in the order of their names."""
    return sorted(path.stem for path in folder.glob("notebooks/*/*.ipynb") if path.parent.name == path.stem)


def _first_cell(folder: Path, name: str) -> tuple[str, str]:
    """Heading and text of a notebook's first cell."""
    cells = nbformat.read(folder / "notebooks" / name / f"{name}.ipynb", as_version=4).cells
    heading, _, text = cells[0].source.partition("\n")
    return heading.lstrip("# "), " ".join(text.split())


def _content(folder: Path, name: str, prefix: str = "") -> str:
    """The reading, then pictures with what they show as caption, the table, further tables folded or, where they have
    more columns than a page is wide, linked; the notebook."""
    there, link = folder / "notebooks" / name, f"{prefix}notebooks/{name}"
    heading, caption = _first_cell(folder, name)
    parts = [saved(there / "reading.md")]
    for p in sorted(there.glob("*.png")):
        parts.append(f"![{heading}]({link}/{p.name})\n\n*{caption if p.stem == name else p.stem.capitalize()}*")
    for path in sorted(there.glob("*.md"), key=lambda p: (p.stem != name, p.stem)):
        if path.stem == name:
            parts.append(saved(path))
        elif path.stem != "reading":
            title, table = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# "), saved(path)
            wide = table.partition("\n")[0].count("|") > WIDEST + 1
            parts.append(f"[{title}]({link}/{path.name})" if wide else _folded(title, table))
    return "\n\n".join([*parts, f"[Executed notebook]({link}/{name}.ipynb)"])


def _folded(summary: str, content: str) -> str:
    """Content behind a line that a reader can open."""
    return f"<details>\n<summary>{summary}</summary>\n\n{content.rstrip()}\n\n</details>" if content else ""


def _settings(frame: pd.DataFrame, records: Records) -> list[str]:
    """What was run, with which settings."""
    prepared, own = records.at("prepare", "results") or {}, frame["benchmark"].iloc[0]
    lines = []
    if "train_images" in prepared:
        lines.append(
            f"Data: {notes.data_name(frame)}; {plural(prepared['train_images'], 'training image')}, "
            f"{plural(prepared['holdout_images'], 'held-out image')}, {prepared['classes']} classes."
        )
    seeds = [s for s in ("train_seed", "sample_seed") if frame[s].notna().any()]
    kinds = {"train_seed": "training", "sample_seed": "sampling"}
    lines.append(
        f"Models: {', '.join(model_name(s) for s in frame['size'].unique())}; seeds: "
        + ", ".join(f"{kinds[s]} {', '.join(f'{n:g}' for n in sorted(frame[s].dropna().unique()))}" for s in seeds)
        + "."
    )
    plain = notes.named_by_steps(frame)
    for budget in plain:
        rows = frame[frame["budget"] == budget].dropna(subset=["N"]).to_dict("records")
        texts = ["{Schedule} schedule, {Solver}, guidance: {Guidance}".format(**notes.sampling(row)) for row in rows]
        lines.append(f"Sampling, N = {budget}: {'; or '.join(dict.fromkeys(texts))}.")
    if others := sorted(set(frame["budget"].dropna()) - set(plain)):
        lines.append(f"Sampling: {plural(len(others), 'further setting' if plain else 'setting')}, each in the table.")
    devices = " and ".join(sorted(frame["device"].dropna().unique()))
    seconds = sum(r["provenance"].get("cpu_seconds", 0) for r in records.values() if r["benchmark"] == own)
    took = f"; {seconds / 3600:.1f} hours of processor time in all" if seconds else ""
    lines.append(f"Machine: {devices}{took}.")
    return lines


def _training(frame: pd.DataFrame) -> Table:
    """Architecture and recipe where sizes differ, under the names of benchmark.yaml; parameters, compute and context
    gate of every size."""
    final = frame[frame["snapshot"].isna()]
    models, rows = final.drop_duplicates("size").dropna(subset=["parameters"]), []  # the others have not been trained
    settings = models[[c for c in models if c.startswith(("model.", "train.")) and c not in SAME_FOR_A_READER]]
    differing = [c for c in settings if settings[c].nunique(dropna=False) > 1]
    for size, group in final.groupby("size", sort=False):
        one, seeds = group.iloc[0], group.drop_duplicates("train_seed")
        ratios = [f"{r:.2f}" for r in seeds["gate_ratio"].dropna()]
        known = not missing(one["train_images"])
        rows.append(
            {
                "Model": model_name(size),
                **{c.partition(".")[2]: setting(one[c]) for c in differing},
                "Params": count(one["parameters"]),
                "Images seen": count(one["train_images"]) if known else NONE,
                "Training FLOPs": f"{one['flops']:.2e}" if not missing(one["flops"]) else NONE,
                "Context gate, each seed": ", ".join(ratios) or NONE,
                "Passed": NONE if not ratios else "yes" if seeds["gate_passed"].all() else "NO",
            }
        )
    return Table("training", "Training", pd.DataFrame(rows))


def setting(value: object) -> str:
    """A setting as benchmark.yaml has it; a dash where there is none."""
    if isinstance(value, (bool, np.bool_)):
        return str(value).lower()
    return NONE if missing(value) else f"{value:.10g}" if isinstance(value, float) else f"{value}"


def _row(root: Path, name: str, frame: pd.DataFrame) -> dict[str, str]:
    """A benchmark in the table of all."""
    final = frame[frame["snapshot"].isna()]
    cells = summarise(final, "fid", also=("scored_images",))
    row = {
        "Benchmark": f"[{name}]({name}/README.md)",
        "Data": notes.data_name(frame),
        "Models": str(final["size"].nunique()),
        "Runs": f"{final['fid'].notna().sum():,}",
    }
    low, high = cells["mean"].min(), cells["mean"].max()
    images = cells["scored_images"].dropna().unique()
    row["FID"] = NOT_RUN if missing(low) else f"{low:.2f} to {high:.2f}"
    row["Images"] = " or ".join(thousands(n) for n in images) or NONE
    real = baselines(root, name)
    fids = real[real["metric"] == "fid"].set_index("baseline")["mean"]
    for key, label in (("holdout", "Held-out"), ("class_shuffle", "Class shuffle")):
        row[label] = plus_minus(fids.get(key), absent=NONE)
    return row
