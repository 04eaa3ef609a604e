"""Whether two machines' numbers say the same: a test of equivalence, whatever the scatter."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emigm.records.equivalence import DIFFERS, IDENTICAL, OF_DISTANCE, REPRODUCED, UNDECIDED, Comparison, compare

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
    least = 0.05 * 4.015  # of the value, less than a quarter of what matters
    assert status(records(sharp), records([f + 0.95 * least for f in sharp])) == REPRODUCED
    assert status(records(sharp), records([f + 1.05 * least for f in sharp])) == DIFFERS


def test_scatter_earns_nothing():
    """Equal means of runs that lie far apart show nothing, which a test of a difference would let pass."""
    wild = [1.0, 9.0, 8.0, 2.0]
    other = [9.0, 1.0, 2.0, 8.0]
    (found,) = [v for v in compare(records(wild), records(other)).verdicts if v.cell == "evaluate-xs 4 fid"]
    assert found.ours == found.theirs and found.status == UNDECIDED and found.note == "too much scatter to tell"
    assert not compare(records(wild), records(other)).same


def sizes(*fids, shift=0.0) -> dict:
    """Of as many sizes, each with its runs."""
    found = {}
    for n, values in enumerate(fids):
        tree = records([f + shift for f in values])
        found |= {"reference": tree["reference"], f"evaluate-s{n}": tree["evaluate-xs"]}
    return found


def test_what_scatters_too_much_cell_by_cell_is_decided_over_all_sizes():
    """Trainings that each move by one or so, up as often as down, and whose mean hardly moves."""
    rng = np.random.default_rng(3)
    before = rng.normal(4, 0.1, (6, 4))
    moves = rng.normal(0, 0.9, (6, 2)).repeat(2, axis=1)
    sides = [sizes(*(before + m)) for m in (0.0, moves - moves.mean())]
    found = compare(*sides)
    assert {v.status for v in found.verdicts if "fid" in v.cell and "evaluate" in v.cell} == {UNDECIDED}
    (metric,) = found.metrics
    assert (metric.name, metric.status, metric.cells, metric.trainings) == ("evaluate fid", REPRODUCED, 6, 12)
    assert abs(metric.mean) < 1e-9 and 0 < metric.reached < 1 and found.same
    assert compare(*reversed(sides)).metrics[0].reached == pytest.approx(metric.reached)
    shifted = compare(sides[0], sizes(*(before + moves - moves.mean()), shift=MARGIN))
    assert not shifted.of(DIFFERS) and shifted.metrics[0].status == UNDECIDED and not shifted.same
    (far,) = compare(sides[0], sizes(*(before + moves - moves.mean()), shift=3 * MARGIN)).metrics
    assert far.status == DIFFERS


def test_budgets_of_one_training_are_one_observation():
    """Sampled at ten budgets instead of one, two trainings say no more about trainings."""
    moved = [f + d for f, d in zip(FIDS, (0.9, 0.9, -0.9, -0.9), strict=True)]
    once, more = ([records(FIDS), records(moved)] for _ in range(2))
    for tree in more:
        runs = tree["evaluate-xs"]["results"]["4"]
        tree["evaluate-xs"]["results"] = {str(n): runs for n in range(4, 14)}
    found = [compare(*sides) for sides in (once, more)]
    assert [f.metrics[0].cells for f in found] == [1, 10] and [f.metrics[0].trainings for f in found] == [2, 2]
    assert found[0].metrics[0].reached == pytest.approx(found[1].metrics[0].reached)
    one, *_, last = (next(v for v in f.verdicts if v.cell == "evaluate-xs 4 fid") for f in found)
    assert one.reached == pytest.approx(last.reached)


def test_a_wild_cell_does_not_pass_by_the_others_calm():
    calm, wild = records(FIDS), records([-20.0, 30.0, 28.0, -18.0])
    for tree, fids in ((calm, FIDS), (wild, FIDS)):
        tree["evaluate-xs"]["results"] |= {
            str(n): {"runs": records([f + n for f in fids])["evaluate-xs"]["results"]["4"]["runs"]}
            for n in range(8, 30)
        }
    assert status(calm, wild) == UNDECIDED


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
def test_no_cell_both_lies_within_its_margin_and_differs(a, b):
    """A difference is shown at a stricter level than equivalence, so that more cells of a benchmark mean no more
    that are told to differ by chance."""
    (found,) = [v for v in compare(records(a), records(b)).verdicts if v.cell == "evaluate-xs 4 fid"]
    if found.status == DIFFERS:
        assert abs(found.ours - found.theirs) > found.margin


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


# How often the rule errs, on runs of the benchmark `ladder`: 5 sizes, 2 budgets, 6 training and 2 sampling seeds

LADDER = Path(__file__).parents[1] / "results" / "ladder" / "records"
STAGES = [f"{stage}-{size}" for stage in ("train", "evaluate") for size in ("xs", "s", "b", "l", "h")]


def of_seeds(tree, chosen):
    """A record's results as trainings with the seeds at so many places give them, under the seeds 0, 1, ..."""
    if isinstance(tree, dict):
        if "runs" in tree:
            seeds = sorted({run["train_seed"] for run in tree["runs"]})
            renamed = {seeds[place]: new for new, place in enumerate(chosen)}
            return {
                key: [r | {"train_seed": renamed[r["train_seed"]]} for r in tree[key] if r["train_seed"] in renamed]
                for key in ("runs", "fid_by_images")
            }
        if len(tree.get("values", ())) == 6:
            values = [tree["values"][place] for place in chosen]
            return {"mean": float(np.mean(values)), "values": values}
        return {key: of_seeds(value, chosen) for key, value in tree.items()}
    return [of_seeds(tree[place], chosen) for place in chosen] if isinstance(tree, list) and len(tree) == 6 else tree


def two_machines(rng, seeds):
    """Two sets of records whose trainings have nothing in common but their settings: a machine that changes every
    training as much as another seed does."""
    ladder = {stage: json.loads((LADDER / f"{stage}.json").read_text()) for stage in (*STAGES, "reference")}
    sides = ({"reference": ladder["reference"]}, {"reference": ladder["reference"]})
    for size in ("xs", "s", "b", "l", "h"):
        places = [int(p) for p in rng.permutation(6)]
        for stage in (f"train-{size}", f"evaluate-{size}"):
            for side, chosen in zip(sides, (places[:seeds], places[seeds : 2 * seeds]), strict=True):
                side[stage] = ladder[stage] | {"results": of_seeds(ladder[stage]["results"], chosen)}
    return sides


def worse(records, by, stages=STAGES):
    """The same with every FID higher by so much."""
    for stage in stages:
        if stage.startswith("evaluate"):
            for scored in records[stage]["results"].values():
                scored["runs"] = [run | {"fid": run["fid"] + by} for run in scored["runs"]]
    return records


def outcome(found: Comparison) -> str:
    differs = found.of(DIFFERS) or any(m.status == DIFFERS for m in found.metrics)
    return DIFFERS if differs else REPRODUCED if found.same else UNDECIDED


@pytest.mark.parametrize(("seeds", "reproduced"), [(2, 0.6), (3, 0.95)])
def test_a_machine_that_draws_every_training_anew_is_never_told_to_differ_and_mostly_to_reproduce(seeds, reproduced):
    rng = np.random.default_rng(0)
    counts = Counter(outcome(compare(*two_machines(rng, seeds))) for _ in range(40))
    assert counts[REPRODUCED] >= reproduced * 40 and not counts[DIFFERS]


def test_a_machine_whose_fids_are_worse_by_the_margin_is_not_told_to_reproduce():
    rng = np.random.default_rng(1)
    counts = {by: Counter() for by in (1, 3)}
    for _ in range(40):
        for by, count in counts.items():
            ours, theirs = two_machines(rng, 2)
            ends = [theirs["reference"]["results"]["baselines"][name] for name in ("holdout", "class_shuffle")]
            margin = OF_DISTANCE * abs(ends[0]["fid"]["mean"] - ends[1]["fid"]["mean"])
            count[outcome(compare(worse(ours, by * margin), theirs))] += 1
    assert counts[1][REPRODUCED] <= 4 and counts[3][DIFFERS] == 40
