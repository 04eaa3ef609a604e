"""Whether two machines' numbers say the same: a test of equivalence, whatever the scatter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emigm.records.cells import DIFFERS, IDENTICAL, OF_DISTANCE, REPRODUCED, compare

DISTANCE = 10.0
MARGIN = OF_DISTANCE * DISTANCE


def records(fids, **changes) -> dict:
    """Of two training and two sampling seeds, with baselines `DISTANCE` apart."""
    runs = [
        {"train_seed": t, "sample_seed": s, "fid": f, "kid": None}
        for (t, s), f in zip(((0, 0), (0, 1), (1, 0), (1, 1)), fids, strict=True)
    ]
    base = {"benchmark": "b", "dry_run": False, "weights": "trained", "reference": None, "scale": None}
    baselines = {"holdout": {"fid": {"mean": 1.0}}, "class_shuffle": {"fid": {"mean": 1.0 + DISTANCE}}}
    return {
        "reference": base | {"settings": {}, "results": {"baselines": baselines}},
        "train-xs": base | {"settings": {"lr": 1.0} | changes, "results": {"parameters": 10, "seconds": {"mean": 1.0}}},
        "evaluate-xs": base | {"settings": {}, "results": {"4": {"runs": runs}}},
    }


def status(a, b, cell="evaluate-xs 4 fid") -> str:
    (found,) = [v for v in compare(a, b).verdicts if v.cell.startswith(cell)]
    return found.status


FIDS = [4.0, 4.4, 4.2, 4.6]


def test_equal_values_are_identical():
    found = compare(records(FIDS), records(FIDS))
    assert {v.status for v in found.verdicts} == {IDENTICAL} and not found.missing and not found.extra


def test_a_small_shift_is_reproduced_and_a_large_one_differs():
    assert status(records(FIDS), records([f + 0.05 for f in FIDS])) == REPRODUCED
    assert status(records(FIDS), records([f + 3 for f in FIDS])) == DIFFERS


def test_the_margin_is_no_wider_than_what_the_runs_scatter_by():
    """Runs that scatter by 0.02 say no more than a quarter of what matters, whoever makes them again."""
    sharp = [4.0, 4.02, 4.01, 4.03]
    assert status(records(sharp), records([f + 0.24 * MARGIN for f in sharp])) == REPRODUCED
    assert status(records(sharp), records([f + 0.26 * MARGIN for f in sharp])) == DIFFERS


def test_scatter_earns_nothing():
    """Equal means of runs that lie far apart show nothing, which a test of a difference would let pass."""
    wild = [1.0, 9.0, 8.0, 2.0]
    other = [9.0, 1.0, 2.0, 8.0]
    (found,) = [v for v in compare(records(wild), records(other)).verdicts if v.cell == "evaluate-xs 4 fid"]
    assert found.ours == found.theirs and found.status == DIFFERS and found.note == "too much scatter to tell"


def test_a_wild_cell_does_not_pass_by_the_others_calm():
    calm, wild = records(FIDS), records([-20.0, 30.0, 28.0, -18.0])
    for tree, fids in ((calm, FIDS), (wild, FIDS)):
        tree["evaluate-xs"]["results"] |= {
            str(n): {"runs": records([f + n for f in fids])["evaluate-xs"]["results"]["4"]["runs"]}
            for n in range(8, 30)
        }
    assert status(calm, wild) == DIFFERS


def test_counts_and_settings_must_be_identical():
    other = records(FIDS)
    other["train-xs"]["results"]["parameters"] = 11
    assert status(records(FIDS), other, "train-xs parameters") == DIFFERS
    assert status(records(FIDS, lr=1.0001), records(FIDS), "train-xs settings lr") == DIFFERS


def test_speed_is_no_cell():
    other = records(FIDS)
    other["train-xs"]["results"]["seconds"] = {"mean": 99.0}
    assert {v.status for v in compare(records(FIDS), other).verdicts} == {IDENTICAL}


def test_files_that_each_machine_fits_itself_may_have_other_bytes_and_others_may_not():
    base = {"benchmark": "b", "dry_run": False, "weights": "trained", "reference": None, "scale": None}
    for kind, expected in (("kmeans", 0), ("vq", 1)):
        sides = [
            {"encode": base | {"settings": {"autoencoder": {"kind": kind}}, "results": {"weights_sha256": {"c": s}}}}
            for s in ("ab", "cd")
        ]
        assert len(compare(*sides).of(DIFFERS)) == expected
    sides = [
        {"extractor": base | {"settings": {}, "results": {"sha256": s, "holdout_accuracy": 0.9} | more}}
        for s, more in (("ab", {}), ("cd", {}))
    ]
    assert not compare(*sides).of(DIFFERS)
    for side in sides:
        side["extractor"]["results"] |= {"published": True}
        del side["extractor"]["results"]["holdout_accuracy"]
    assert len(compare(*sides).of(DIFFERS)) == 1


def test_a_metric_that_one_side_did_not_measure_differs():
    other = records(FIDS)
    for run in other["evaluate-xs"]["results"]["4"]["runs"]:
        run["kid"] = 0.1
    assert status(records(FIDS), other, "evaluate-xs 4 kid") == DIFFERS


def test_one_value_must_lie_within_half_the_margin():
    for change, expected in ((0.4, REPRODUCED), (0.6, DIFFERS)):
        other = records(FIDS)
        other["reference"]["results"]["baselines"]["holdout"]["fid"]["mean"] += (
            change * OF_DISTANCE * (DISTANCE - change)
        )
        assert status(records(FIDS), other, "reference baselines holdout fid") == expected


def test_missing_cells_are_named():
    less = records(FIDS)
    del less["evaluate-xs"]
    found = compare(less, records(FIDS))
    assert "evaluate-xs 4 fid" in found.missing
    assert "evaluate-xs 4 fid" in compare(records(FIDS), less).extra


def test_runs_of_other_seeds_differ():
    other = records(FIDS)
    other["evaluate-xs"]["results"]["4"]["runs"][0]["sample_seed"] = 7
    assert status(records(FIDS), other) == DIFFERS


finite = st.lists(st.floats(0.1, 50), min_size=4, max_size=4)


@settings(deadline=None, max_examples=200)
@given(finite, finite)
def test_equivalence_is_symmetric(a, b):
    there, back = (compare(records(x), records(y)).verdicts for x, y in ((a, b), (b, a)))
    assert [v.status for v in there] == [v.status for v in back]
    assert [v.margin for v in there] == pytest.approx([v.margin for v in back])


@settings(deadline=None, max_examples=200)
@given(finite, finite)
def test_what_is_reproduced_lies_within_the_difference_that_matters(a, b):
    (found,) = [v for v in compare(records(a), records(b)).verdicts if v.cell == "evaluate-xs 4 fid"]
    if found.status == REPRODUCED:
        value = (np.mean(a) + np.mean(b)) / 2
        assert abs(np.mean(a) - np.mean(b)) < max(MARGIN, 0.05 * value) * (1 + 1e-9)


def test_two_runs_of_one_machine_s_scatter_are_told_from_a_shift_in_most_cases():
    """Power and size by simulation: seeds in common, and a machine that changes each run by 0.05."""
    rng = np.random.default_rng(0)
    counts = {0.0: 0, MARGIN: 0}
    for _ in range(200):
        fids = rng.normal(4, 0.3, 4)
        for shift in counts:
            again = fids + shift + rng.normal(0, 0.05, 4)
            counts[shift] += status(records(list(fids)), records(list(again))) == REPRODUCED
    assert counts[0.0] > 180 and counts[MARGIN] < 20
