"""Tables of the paper as it prints them. No torch in this module."""

from __future__ import annotations

import math
from functools import cache
from importlib import resources

import pandas as pd

from emigm.config.errors import check
from emigm.config.parsing import known

PAPER_IMAGES = 50_000
"""Generated images behind a FID of the paper's tables."""


def reported(resolution: int | None = None) -> pd.DataFrame:
    """Rows of Tables 2 and 3, with the columns of Table 8, in the paper's order, all columns text: resolution, family,
    method, nfe, fid, params, sfid, is, precision, recall, note.

    Rows of family "Ours" have two columns more, of the model they are: size ("xs") and budget (N, "16").
    """
    with resources.files("emigm.paper").joinpath("reported.csv").open(encoding="utf-8") as f:
        rows = pd.read_csv(f, comment="#", dtype=str, keep_default_na=False)
    ours = rows["family"] == "Ours"
    rows["size"] = rows["method"].str.split("-").str[1].str.lower().where(ours, "")
    rows["budget"] = rows["nfe"].str.split("x").str[0].where(ours, "")
    return rows if resolution is None else rows[rows["resolution"] == str(resolution)].reset_index(drop=True)


def printed(table: str) -> pd.DataFrame:
    """Another table as the paper prints it ("table9", "table10")."""
    with resources.files("emigm.paper").joinpath(f"{table}.csv").open(encoding="utf-8") as f:
        return pd.read_csv(f, comment="#")


@cache
def value(resolution: int, method: str, metric: str) -> float:
    """FID, parameters or NFE (for `passes`) of a method, or of one of ours ("eMIGM-B at 128"); ConfigError where the
    paper has none."""
    rows = reported(resolution)
    rows.index = rows["method"] + (" at " + rows["budget"]).where(rows["family"] == "Ours", "")
    known("reported method", method, rows.index)
    row = rows.loc[method]
    if metric == "passes":
        return math.prod(map(float, row["nfe"].split("x")))
    if metric == "parameters":
        check(row["params"], f"the paper reports no parameters of {method}")
        return float(row["params"][:-1]) * {"M": 1e6, "B": 1e9}[row["params"][-1]]
    return float(row[metric])
