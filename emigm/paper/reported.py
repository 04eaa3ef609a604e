"""Tables 2 and 3 as the paper prints them. No torch in this module."""

from __future__ import annotations

from importlib import resources

import pandas as pd

PAPER_IMAGES = 50_000
"""Generated images behind a FID of the paper's tables."""


def reported(resolution: int | None = None) -> pd.DataFrame:
    """Rows in the paper's order, all columns text: resolution, family, method, nfe, fid, params, note.

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
