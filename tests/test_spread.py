"""The combined standard error of tables and error bars: closed forms, and draws of a known truth."""

# ruff: noqa: RUF001
# × is meant.

import numpy as np
import pandas as pd
import pytest

from emigm.report.statistics import combined, summarise


def runs(values):
    """(training seed, sampling seed, value) of an array (training seeds, sampling seeds)."""
    return [(t, s, v) for t, row in enumerate(np.atleast_2d(values)) for s, v in enumerate(row)]


def test_the_error_adds_both_kinds_of_seeds():
    values = np.array([[1.0, 3.0], [5.0, 9.0], [2.0, 2.0]])
    found = combined(runs(values))
    train, sample = values.mean(1).var(ddof=1) / 3, values.var(axis=1, ddof=1).mean() / 2
    assert found.mean == pytest.approx(values.mean()) and found.error == pytest.approx(np.sqrt(train + sample))
    assert found.n == "3×2"


def test_a_kind_with_one_seed_adds_nothing_and_one_run_has_no_error():
    assert combined(runs([[1.0, 3.0]])).error == pytest.approx(1.0)
    assert combined(runs([[1.0], [3.0]])).error == pytest.approx(1.0)
    assert combined(runs([[1.0]])).error is None
    with pytest.raises(ValueError, match="no runs"):
        combined([])


def test_training_means_that_agree_by_chance_do_not_hide_the_sampling_spread():
    """As in a table that read 4.479 ± 0.003 where sampling seeds spread by 0.24."""
    assert combined(runs([[4.24, 4.71], [4.47, 4.485]])).error > 0.1


@pytest.mark.parametrize(
    ("sizes", "spreads", "least", "most"),
    [  # (training seeds, sampling seeds), (deviation of training seeds, own sampling seeds, shared sampling seeds)
        ((2, 3), (0, 1, 0), 0.91, 0.96),
        ((6, 2), (0, 1, 0), 0.98, 1.0),
        ((6, 2), (1, 0.2, 0), 0.78, 0.84),
        ((2, 3), (1, 0.2, 0), 0.60, 0.67),
        ((6, 2), (0.3, 0.5, 1), 0.72, 0.79),
    ],
)
def test_a_repetition_with_other_seeds_lies_within_two_errors_as_often_as_said(sizes, spreads, least, most):
    rng, found = np.random.default_rng(0), []

    def draw():
        own, each, shared = spreads
        noise = each * rng.normal(size=sizes) + shared * rng.normal(size=(1, sizes[1]))
        return own * rng.normal(size=(sizes[0], 1)) + noise

    for _ in range(3000):
        first = combined(runs(draw()))
        found.append(abs(draw().mean() - first.mean) <= 2 * first.error)
    assert least <= np.mean(found) <= most


def frame():
    cells = {("a", "4"): [[1.0, 2.0], [3.0, 4.0]], ("a", "16"): [[5.0, 5.0], [5.0, 5.0]]}
    rows = [
        {
            "benchmark": "x",
            "size": size,
            "budget": budget,
            "snapshot": np.nan,
            "train_seed": t,
            "sample_seed": s,
            "fid": v,
        }
        | {"N": int(budget), "passes": 1.5 * int(budget)}
        for (size, budget), values in cells.items()
        for t, s, v in runs(values)
    ]
    return pd.DataFrame(rows)


def test_a_summary_keeps_the_order_of_its_frame_and_the_means_of_other_columns():
    found = summarise(frame(), "fid")
    assert found["budget"].tolist() == ["4", "16"] and found["mean"].tolist() == [2.5, 5.0]
    assert found["n"].tolist() == ["2×2"] * 2 and found["passes"].tolist() == [6.0, 24.0]
    assert found["error"].iloc[1] == 0


def test_a_cell_that_has_not_run_keeps_its_row_without_a_number():
    missing = frame()
    missing.loc[missing["budget"] == "16", "fid"] = np.nan
    found = summarise(missing, "fid").set_index("budget")
    assert np.isnan(found.loc["16", "mean"]) and np.isnan(found.loc["16", "error"]) and found.loc["4", "mean"] == 2.5
    assert summarise(missing[missing["budget"] == "16"], "fid")["mean"].isna().all()
