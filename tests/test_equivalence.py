"""Whether two machines' numbers say the same: one test of equivalence a metric, whatever the scatter."""

import functools
import json
import operator
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from emigm.records.record import read_record
from emigm.verify.equivalence import DIFFERS, IDENTICAL, OF_DISTANCE, REPRODUCED, UNDECIDED, compare, matters

DISTANCE = 10.0
MARGIN = OF_DISTANCE * DISTANCE
BASE = {"benchmark": "b", "dry_run": False, "weights": "trained", "reference": None, "scale": None}


def evaluated(fids, seeds=((0, 0), (0, 1), (1, 0), (1, 1)), **record) -> dict:
    """The record of an evaluation at N = 4."""
    runs = [{"train_seed": t, "sample_seed": s, "fid": f, "kid": None} for (t, s), f in zip(seeds, fids, strict=True)]
    return BASE | {"settings": {}, "results": {"4": {"runs": runs}}} | record


def records(*fids) -> dict:
    """Models s0, s1, ... of two training and two sampling seeds each, with baselines `DISTANCE` apart."""
    baselines = {"holdout": {"fid": {"mean": 1.0}}, "class_shuffle": {"fid": {"mean": 1.0 + DISTANCE}}}
    results = {"parameters": 10, "seconds": {"mean": 1.0}}
    return {
        "reference": BASE | {"settings": {}, "results": {"baselines": baselines}},
        "train-s0": BASE | {"settings": {"lr": 1.0}, "results": results},
        **{f"evaluate-s{n}": evaluated(values) for n, values in enumerate(fids)},
    }


def status(a, b, cell="evaluate-s0 4 fid") -> str:
    (found,) = [v for v in compare(a, b).verdicts if v.cell.startswith(cell)]
    return found.status


def fid_of(a, b):
    (metric,) = [m for m in compare(a, b).metrics if m.name == "evaluate fid"]
    return metric


FIDS = [4.0, 4.4, 4.2, 4.6]
MOVES = np.random.default_rng(3).normal(0, 0.6, (6, 2))
MOVES = (MOVES - MOVES.mean(axis=1, keepdims=True)).repeat(2, axis=1)
BEFORE = np.random.default_rng(4).normal(4, 0.4, (6, 4))
"""Six models whose trainings move by half a margin or so, one as far up as the other down."""


def test_equal_values_are_identical_and_missing_cells_are_named():
    equal = compare(records(FIDS), records(FIDS))
    assert {v.status for v in equal.verdicts} == {IDENTICAL} and not equal.missing and not equal.extra
    assert not equal.metrics and equal.status == REPRODUCED
    missing = compare(records(), records(FIDS))
    assert "evaluate-s0 4 fid" in missing.missing and missing.status == DIFFERS
    assert "evaluate-s0 4 fid" in compare(records(FIDS), records()).extra


@pytest.mark.parametrize(
    ("margins", "cell", "metric"), [(0.05, REPRODUCED, REPRODUCED), (1.1, UNDECIDED, DIFFERS), (3, UNDECIDED, DIFFERS)]
)
def test_a_cell_says_where_it_lies_and_its_metric_decides(margins, cell, metric):
    sides = records(FIDS), records([f + margins * MARGIN for f in FIDS])
    assert status(*sides) == cell and fid_of(*sides).status == metric == compare(*sides).status


def test_the_margin_is_no_wider_than_what_the_runs_scatter_by_and_scatter_earns_nothing():
    """Runs that scatter by 0.02 say no more than a quarter of what matters, whoever makes them again; equal means of
    runs that lie far apart show nothing, which a test of a difference would let pass."""
    sharp = [4.0, 4.02, 4.01, 4.03]
    least = 0.05 * 4.015  # of the value, less than a quarter of what matters
    for share, expected in ((0.95, REPRODUCED), (1.05, UNDECIDED)):
        assert status(records(sharp), records([f + share * least for f in sharp])) == expected
    metric = fid_of(records([1.0, 1.0, 9.0, 9.0]), records([9.0, 9.0, 1.0, 1.0]))
    assert metric.mean == pytest.approx(0) and metric.status == UNDECIDED and metric.high > 1


def test_the_interval_is_that_of_a_t_test_over_sizes_and_training_seeds():
    metric = fid_of(records(*BEFORE), records(*(BEFORE + MOVES)))
    differences = -MOVES[:, ::2].ravel() / MARGIN  # of both sampling seeds the same
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.9)
    assert (metric.cells, metric.values, metric.parts, metric.status) == (6, 12, "", REPRODUCED)
    assert (metric.low, metric.high) == pytest.approx(tuple(expected), abs=1e-9)


def test_opposite_changes_of_sizes_or_sampling_configurations_do_not_cancel():
    trend = np.linspace(-2, 2, 6)[:, None] * MARGIN
    metric = fid_of(records(*BEFORE), records(*(BEFORE + MOVES + trend)))
    assert abs(metric.mean) < 1e-9 and metric.status == UNDECIDED and "s5 alone -2.00" in metric.parts
    sides = records(*BEFORE), records(*(BEFORE + MOVES))
    for tree, way in zip(sides, (-0.8, 0.8), strict=True):
        for results in (tree[stage]["results"] for stage in tree if stage.startswith("evaluate")):
            runs = results["4"]["runs"]
            for budget, by in (("4", way), ("16", -way)):
                results[budget] = {"runs": [run | {"fid": run["fid"] + by * MARGIN} for run in runs]}
    metric = fid_of(*sides)
    assert abs(metric.mean) < 1e-9 and metric.status == UNDECIDED
    assert metric.parts == "16 fid alone +1.60, 4 fid alone -1.60"


def test_cells_that_have_not_run_again_are_no_evidence_for_those_that_have():
    moved = np.zeros((6, 4))
    moved[5] = MOVES[5] + 0.9 * MARGIN
    metric = fid_of(records(*BEFORE), records(*(BEFORE + moved)))
    assert (metric.cells, metric.values, metric.status) == (1, 2, UNDECIDED)
    assert metric.mean == pytest.approx(-0.9)


def test_sampling_configurations_of_one_training_are_one_observation():
    """Sampled at ten budgets instead of one, two trainings say no more about trainings."""
    moved = [f + d for f, d in zip(FIDS, (0.9, 0.9, -0.9, -0.9), strict=True)]
    once, more = ([records(FIDS), records(moved)] for _ in range(2))
    for tree in more:
        runs = tree["evaluate-s0"]["results"]["4"]
        tree["evaluate-s0"]["results"] = {str(n): runs for n in range(4, 14)}
    one, ten = fid_of(*once), fid_of(*more)
    assert (one.cells, one.values, ten.cells, ten.values) == (1, 2, 10, 2)
    assert one.high == pytest.approx(ten.high)


def test_of_released_weights_sampling_seeds_are_what_is_repeated():
    fids, seeds = ([4.0, 4.1, 4.2, 4.3], [4.3, 4.2, 4.3, 4.2]), [(0, i) for i in range(4)]
    assert fid_of(*({"evaluate-s0": evaluated(f, seeds, weights="released")} for f in fids)).values == 4


@pytest.mark.parametrize(
    ("margins", "expected"), [(0.4, REPRODUCED), (0.6, UNDECIDED), (5, UNDECIDED), (7, DIFFERS), (-7, DIFFERS)]
)
def test_of_one_value_nothing_is_told_but_what_is_near_or_very_far(margins, expected):
    one = [records() | {"evaluate-s0": evaluated([f], [(0, 0)])} for f in (40.0, 40.0 + margins * MARGIN)]
    assert fid_of(*one).status == expected


def edited(key, value):
    """Records with one value of theirs, at a dotted key, set to another."""
    tree = json.loads(json.dumps(records(FIDS)))
    *above, last = (int(k) if k == "0" else k for k in key.split("."))
    functools.reduce(operator.getitem, above, tree)[last] = value
    return tree


@pytest.mark.parametrize(
    ("key", "value", "cell"),
    [
        ("train-s0.results.parameters", 11, "train-s0 parameters"),
        ("train-s0.settings.lr", 1.0001, "train-s0 settings lr"),
        ("evaluate-s0.results.4.runs.0.sample_seed", 7, "evaluate-s0 4 fid"),
        ("evaluate-s0.results.4.runs.0.kid", 0.1, "evaluate-s0 4 kid"),  # which one side did not measure
    ],
)
def test_facts_must_be_identical(key, value, cell):
    sides = records(FIDS), edited(key, value)
    assert status(*sides, cell) == DIFFERS and compare(*sides).status == DIFFERS


def test_speed_and_scores_of_snapshots_are_not_judged():
    other = edited("train-s0.results.seconds", {"mean": 99.0})
    assert {v.status for v in compare(records(FIDS), other).verdicts} == {IDENTICAL}
    scores = compare(*({"snapshots-s0": evaluated(fids)} for fids in (FIDS, [f + 9 for f in FIDS])))
    assert scores.status == REPRODUCED and not scores.metrics
    assert ("snapshots-s0 settings", IDENTICAL) in {(v.cell, v.status) for v in scores.verdicts}


@pytest.mark.parametrize(
    ("stage", "settings", "results", "differs"),
    [
        ("encode", {"autoencoder": {"kind": "kmeans"}}, lambda s: {"weights_sha256": {"c": s}}, False),
        ("encode", {"autoencoder": {"kind": "kl16"}}, lambda s: {"weights_sha256": {"c": s}}, True),
        ("extractor", {}, lambda s: {"sha256": s, "holdout_accuracy": 0.9}, False),
        ("extractor", {}, lambda s: {"sha256": s, "published": True}, True),
    ],
)
def test_files_that_each_machine_fits_itself_may_have_other_bytes_and_others_may_not(stage, settings, results, differs):
    sides = [{stage: BASE | {"settings": settings, "results": results(s)}} for s in ("ab", "cd")]
    assert (compare(*sides).status == DIFFERS) == differs


@pytest.mark.parametrize(
    ("metric", "value", "distance", "margin"),
    [
        *((name, 0.7, np.inf, 0.05) for name in ("precision", "recall", "cas", "label_accuracy", "ratio")),
        ("isc", 9.0, np.inf, 0.45),
        ("kid", 9.0, 2.0, 0.2),
        ("kid", 9.0, 0.0, 0.45),
    ],
)
def test_the_smallest_difference_that_matters(metric, value, distance, margin):
    assert matters(metric, value, distance) == pytest.approx(margin)


def test_fid_by_other_extractors_is_held_against_the_distance_of_fid():
    def side(shift):
        tree = records(FIDS)
        for run in tree["evaluate-s0"]["results"]["4"]["runs"]:
            run["fid_by_extractor"] = {"0": run["fid"], "1": run["fid"] + 1 + shift}
        tree["reference"]["results"]["baselines"]["holdout"]["fid_by_extractor"] = {
            "0": {"mean": 1.0},
            "1": {"mean": 2.0},
        }
        return tree

    cell = "evaluate-s0 4 fid of extractor 1"
    assert status(side(0), side(0), cell) == IDENTICAL and status(side(0), side(MARGIN / 10), cell) == REPRODUCED
    assert status(side(0), side(2 * MARGIN), cell) == UNDECIDED
    names = {v.cell for v in compare(side(0), side(0)).verdicts}
    assert "reference baselines holdout fid of extractor 1" in names and not any("fid_by" in name for name in names)


sides = st.builds(
    lambda a, shift, scatter, noise: (a, [f + shift * MARGIN + scatter * n for f, n in zip(a, noise, strict=True)]),
    st.lists(st.floats(1, 9), min_size=4, max_size=4),
    st.sampled_from([0.0, 0.5, 1.0, 3.0, 30.0]),
    st.sampled_from([0.0, 0.001, 0.05, 1.0]),
    st.lists(st.floats(-1, 1), min_size=4, max_size=4),
)
"""Runs of two machines: near, about a margin apart, and far."""


@settings(deadline=None, max_examples=100)
@given(sides)
def test_equivalence_is_symmetric_and_reproduced_metrics_lie_within_a_margin(both):
    there, back = (compare(*map(records, pair)) for pair in (both, both[::-1]))
    assert [v.status for v in there.verdicts] == [v.status for v in back.verdicts]
    assert [v.margin for v in there.verdicts] == pytest.approx([v.margin for v in back.verdicts])
    assert [m.status for m in there.metrics] == [m.status for m in back.metrics]
    for metric in there.metrics:
        if metric.status != UNDECIDED:
            assert (abs(metric.mean) < 1) == (metric.status == REPRODUCED)


# How often the rule errs, on runs of the benchmark `ladder`: 5 sizes, 2 budgets, 6 training and 2 sampling seeds

FIVE = ("xs", "s", "b", "l", "h")
RESULTS = Path(__file__).parents[1] / "results"


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


def two_machines(rng, seeds, benchmark="ladder", sizes=FIVE):
    """Two sets of records whose trainings have nothing in common but their settings: a machine that changes every
    training as much as another seed does."""
    folder = RESULTS / benchmark / "records"
    sides = [{"reference": read_record(folder / "reference.json")} for _ in range(2)]
    for size in sizes:
        places = [int(p) for p in rng.permutation(6)]
        for stage in (f"train-{size}", f"evaluate-{size}"):
            record = read_record(folder / f"{stage}.json")
            for side, chosen in zip(sides, (places[:seeds], places[seeds : 2 * seeds]), strict=True):
                side[stage] = record | {"results": of_seeds(record["results"], chosen)}
    return sides


def worse(records, margins):
    """The same with every FID higher by so many margins, a function of size and budget."""
    ends = [records["reference"]["results"]["baselines"][name]["fid"]["mean"] for name in ("holdout", "class_shuffle")]
    for size in FIVE:
        for budget, scored in records[f"evaluate-{size}"]["results"].items():
            by = margins(size, budget) * OF_DISTANCE * abs(ends[0] - ends[1])
            scored["runs"] = [run | {"fid": run["fid"] + by} for run in scored["runs"]]
    return records


CHANGES = {
    "none": lambda size, budget: 0,
    "all, by 1": lambda size, budget: 1,
    "all, by 2": lambda size, budget: 2,
    "all, by 3": lambda size, budget: 3,
    "XS -1.5 to H +1.5": lambda size, budget: 1.5 * (FIVE.index(size) / 2 - 1),
    "N = 16 alone, by 1": lambda size, budget: 1 * (budget == "16"),
    "H alone, by 1": lambda size, budget: 1 * (size == "h"),
    "H alone, by 2": lambda size, budget: 2 * (size == "h"),
    "H alone, by 3": lambda size, budget: 3 * (size == "h"),
    "N = 4 -1.5, N = 16 +1.5": lambda size, budget: 1.5 if budget == "16" else -1.5,
}
"""By how many margins FIDs are worse."""


def outcomes(change, seeds, pairs):
    """Of so many pairs of machines that draw every training anew, one of which is worse beside."""
    rng = np.random.default_rng(0)
    sides = (two_machines(rng, seeds) for _ in range(pairs))
    return Counter(compare(worse(ours, CHANGES[change]), theirs).status for ours, theirs in sides)


def outcomes_of_ablations(pairs):
    """The same of methods that scatter unequally, three seeds each and nothing worse."""
    rng, folder = np.random.default_rng(0), RESULTS / "ablations/records"
    sizes = sorted(path.stem.removeprefix("train-") for path in folder.glob("train-*.json"))
    return Counter(compare(*two_machines(rng, 3, "ablations", sizes)).status for _ in range(pairs))


@pytest.mark.parametrize(
    ("change", "seeds", "reproduced", "differs"),
    [
        ("none", 2, (28, 40), (0, 0)),
        ("none", 3, (38, 40), (0, 0)),
        ("all, by 1", 2, (0, 1), (0, 4)),
        ("all, by 2", 2, (0, 0), (38, 40)),
        ("H alone, by 3", 3, (0, 0), (0, 4)),
        ("XS -1.5 to H +1.5", 2, (0, 12), (0, 1)),
        ("N = 4 -1.5, N = 16 +1.5", 2, (0, 6), (0, 1)),
    ],
)
def test_how_often_machines_that_draw_every_training_anew_reproduce_each_other(change, seeds, reproduced, differs):
    """Of 40 pairs, where the rule's docstring gives the same of 100."""
    counts = outcomes(change, seeds, 40)
    assert reproduced[0] <= counts[REPRODUCED] <= reproduced[1] and differs[0] <= counts[DIFFERS] <= differs[1]


def test_methods_that_scatter_unequally_are_seldom_told_to_differ_by_chance():
    assert outcomes_of_ablations(10)[DIFFERS] <= 1


if __name__ == "__main__":  # the numbers of the rule's docstring
    for change in CHANGES:
        two, three = (outcomes(change, seeds, 100) for seeds in (2, 3))
        print(f"{change:24} {two[REPRODUCED]} ({three[REPRODUCED]})  {two[DIFFERS]} ({three[DIFFERS]})")
    print("ablations", dict(outcomes_of_ablations(60)))
