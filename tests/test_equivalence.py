"""Whether two machines' numbers say the same: one test of equivalence a metric, whatever the scatter."""

import functools
import json
import operator
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

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


def test_what_is_measured_of_the_images_of_a_picture_is_not_judged_and_what_does_not_depend_on_rounding_is():
    def pictures(distance, tokens):
        found = {"nearest": {"samples": [[distance, distance + 1]], "holdout": 58.6, "train_images": 4000}}
        found |= {"guidance": {"interval": {"nfe": 21.0, "from_off": distance}}, "schedules": {"exp": [tokens, 49.0]}}
        return {"reveal-h": BASE | {"settings": {}, "results": found}}

    assert compare(pictures(74.5, 1.0), pictures(75.9, 1.0)).status == REPRODUCED
    assert compare(pictures(74.5, 1.0), pictures(74.5, 2.0)).status == DIFFERS


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


def test_what_has_no_distance_is_held_against_its_value():
    assert [matters("kid", 9.0, distance) for distance in (2.0, 0.0)] == pytest.approx([0.2, 0.45])
    assert matters("isc", 9.0, np.inf) == pytest.approx(0.45) and matters("precision", 0.7, np.inf) == 0.05


def test_fid_by_other_extractors_is_held_against_the_distance_of_fid():
    def side(shift):
        tree = records(FIDS)
        for run in tree["evaluate-s0"]["results"]["4"]["runs"]:
            run["fid_by_extractor"] = {"0": run["fid"], "1": run["fid"] + 1 + shift}
        fids = {"0": {"mean": 1.0}, "1": {"mean": 2.0}}
        tree["reference"]["results"]["baselines"]["holdout"]["fid_by_extractor"] = fids
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


# How often the rule errs, on simulated runs of the default benchmark: 5 models, N = 4 and 16, 2 sampling seeds

FIVE = {"xs": 2.1, "s": 1.5, "b": 1.3, "l": 1.2, "h": 1.1}
"""FID at N = 16; at N = 4 it is `FEWER` higher."""
FEWER, HELD_OUT, SHUFFLE, TRAINING, SAMPLING = 0.9, 0.56, 8.97, 0.1, 0.06
"""TRAINING, SAMPLING: standard deviations of FID over seeds."""


def two_machines(rng, seeds, worse):
    """Two sets of records whose trainings have nothing in common but their settings: a machine that changes every
    training as much as another seed does. FIDs of the first are higher by so many margins beside."""
    ends = {"holdout": {"fid": {"mean": HELD_OUT}}, "class_shuffle": {"fid": {"mean": SHUFFLE}}}
    sides = []
    for side in range(2):
        tree = {"reference": BASE | {"settings": {}, "results": {"baselines": ends}}}
        for size, fid in FIVE.items():
            trained, results = rng.normal(0, TRAINING, seeds), {}
            for budget, more in (("4", FEWER), ("16", 0.0)):
                shift = 0 if side else worse(size, budget) * OF_DISTANCE * (SHUFFLE - HELD_OUT)
                runs = [
                    {"train_seed": t, "sample_seed": s, "fid": fid + more + shift + by + rng.normal(0, SAMPLING)}
                    for t, by in enumerate(trained) for s in range(2)
                ]  # fmt: skip
                results[budget] = {"runs": runs}
            tree[f"evaluate-{size}"] = BASE | {"settings": {}, "results": results}
        sides.append(tree)
    return sides


PLACES = {size: place for place, size in enumerate(FIVE)}
CHANGES = {
    "none": lambda size, budget: 0,
    "all, by 1": lambda size, budget: 1,
    "XS -1.5 to H +1.5": lambda size, budget: 1.5 * (PLACES[size] / 2 - 1),
    "H alone, by 2": lambda size, budget: 2 * (size == "h"),
}
"""By how many margins (shares `OF_DISTANCE` of what lies between the baselines) FIDs are worse."""


@pytest.mark.parametrize(
    ("change", "seeds", "reproduced", "differs"),
    [
        ("none", 1, (12, 32), (0, 1)),
        ("none", 3, (38, 40), (0, 0)),
        ("all, by 1", 1, (0, 1), (38, 40)),
        ("XS -1.5 to H +1.5", 3, (0, 1), (0, 1)),
        ("H alone, by 2", 3, (0, 1), (0, 1)),
    ],
)
def test_how_often_machines_that_draw_every_training_anew_reproduce_each_other(change, seeds, reproduced, differs):
    """Of 40 pairs, where the rule's docstring gives the same of 100."""
    rng = np.random.default_rng(0)
    counts = Counter(compare(*two_machines(rng, seeds, CHANGES[change])).status for _ in range(40))
    assert reproduced[0] <= counts[REPRODUCED] <= reproduced[1] and differs[0] <= counts[DIFFERS] <= differs[1]
