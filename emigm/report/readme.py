"""`make readme`: put the digits' table into README.md, so that its numbers come from the records."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from emigm.config.errors import ConfigError
from emigm.files import write_atomically

BEGIN = "<!-- table: written by `make readme` from results/digits -->"
END = "<!-- end of table -->"
COLUMNS = 6
"""Columns shown of the metrics table: the model, N, NFE, and the first scores."""


def readme_table(metrics: Path) -> str:
    """The first columns of `table2-metrics.csv` as Markdown."""
    if not metrics.is_file():
        raise ConfigError(f"{metrics}: no such file; run dvc repro first")
    frame = pd.read_csv(metrics, dtype=str, keep_default_na=False)
    return frame.iloc[:, :COLUMNS].to_markdown(index=False, disable_numparse=True)


def update_readme(readme: Path, metrics: Path) -> None:
    """Replace what stands between the two marks of `readme`."""
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ConfigError(f"{readme}: the marks {BEGIN!r} and {END!r} are gone; put them back around the table")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    updated = f"{before}{BEGIN}\n{readme_table(metrics)}\n\n{END}{after}"
    write_atomically(readme, lambda p: p.write_text(updated, encoding="utf-8"))


if __name__ == "__main__":
    update_readme(Path("README.md"), Path("results/digits/table2-metrics.csv"))
