"""The claims ledger and its statistics, on numbers made up or drawn here (none was measured)."""

# ruff: noqa: RUF001
# × and − are meant: they stand in the ledger.

import itertools
import json
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from emigm.compose import compose_benchmark
from emigm.parsing import ConfigError
from emigm.records import write_json
from emigm.report import load
from emigm.report.claims import DRY, FAILS, HOLDS, OPEN, all_claims, claims
from emigm.report.ledger import FILE, load_ledger
from emigm.report.results import NOT_RUN, PAPER_IMAGES, Results
from emigm.report.statistics import fid_infinity, holm, page_p, t_interval, trend, unit_means, welch

REPO = Path(__file__).parents[1]
SEEDS = (0, 1, 2, 3)
NOISE = np.array([0.05, -0.04, 0.03, -0.05])
"""Of four training seeds; small beside an effect of 1."""


def assert_estimate(found, effect, interval, p, df):
    assert found.effect == pytest.approx(effect)
    assert (found.low, found.high) == pytest.approx(tuple(interval))
    assert found.p == pytest.approx(p)
    assert found.df == pytest.approx(df)


def test_sampling_seeds_are_averaged_within_a_training_seed():
    runs = [(0, 0, 1.0), (0, 1, 3.0), (5, 0, 10.0), (5, 1, 20.0)]
    assert unit_means(runs) == ("training", {0: 2.0, 5: 15.0})
    assert unit_means(runs[:2]) == ("sampling", {0: 1.0, 1: 3.0})


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_of_paired_differences_is_scipys(level):
    a, b = np.random.default_rng(0).standard_normal((2, 5))
    theirs = stats.ttest_rel(a, b)
    assert_estimate(
        t_interval(a - b, level), (a - b).mean(), theirs.confidence_interval(level), theirs.pvalue, theirs.df
    )


def test_two_groups_of_welch_are_scipys():
    rng = np.random.default_rng(1)
    a, b = rng.normal(1, 1, 4), rng.normal(0, 3, 7)
    theirs = stats.ttest_ind(a, b, equal_var=False)
    found = welch([(1, a), (-1, b)])
    assert_estimate(found, a.mean() - b.mean(), theirs.confidence_interval(), theirs.pvalue, theirs.df)


def test_groups_of_equal_variance_pool_their_degrees_of_freedom():
    values = np.array([-1.0, 0.0, 1.0])
    found = welch([(1, values + 5), (-1, values), (-1, values), (1, values + 2)])
    error = np.sqrt(4 * 1 / 3)
    half = stats.t.ppf(0.975, 8) * error
    assert_estimate(found, 7, (7 - half, 7 + half), 2 * stats.t.sf(7 / error, 8), 8)


def test_the_trend_is_least_squares_with_dummy_variables():
    rng = np.random.default_rng(2)
    x, n, k = np.array([0.0, 0.7, 1.1, 2.0]), 3, 4
    y = rng.normal(size=(n, 1)) * 10 - 2 * x + rng.normal(size=(n, k))
    design = np.column_stack([np.tile(x, n), np.repeat(np.eye(n), k, axis=0)])
    solution, rss, *_ = np.linalg.lstsq(design, y.ravel())
    df = n * k - n - 1
    error = np.sqrt(rss[0] / df * np.linalg.inv(design.T @ design)[0, 0])
    half = stats.t.ppf(0.975, df) * error
    interval = (solution[0] - half, solution[0] + half)
    assert_estimate(trend(x, y), solution[0], interval, 2 * stats.t.sf(abs(solution[0]) / error, df), df)


def test_pages_test_is_the_share_of_rankings_that_fall_as_clearly():
    blocks, ranks = [[3.0, 2.0, 1.0, 0.5], [9.0, 7.0, 8.0, 1.0]], range(1, 5)
    orders = [sum(i * r for i, r in zip(ranks, order, strict=True)) for order in itertools.permutations(ranks)]
    measured = sum(np.dot(ranks, 5 - stats.rankdata(block)) for block in blocks)
    as_clear = [a + b >= measured for a in orders for b in orders]
    assert page_p(blocks) == pytest.approx(np.mean(as_clear))
    assert page_p(blocks[:1]) is None


def test_holm_multiplies_by_the_hypotheses_left_and_never_falls():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_fid_of_infinitely_many_images_is_the_intercept_in_one_over_n():
    sizes = np.array([500, 1000, 2000, 4000, 4000])
    fids = 2.5 + 300 / sizes + np.array([0.02, -0.01, 0.0, 0.01, -0.01])
    design = np.column_stack([np.ones(5), 1 / sizes])
    solution, rss, *_ = np.linalg.lstsq(design, fids)
    error = np.sqrt(rss[0] / 3 * np.linalg.inv(design.T @ design)[0, 0])
    found = fid_infinity(sizes, fids)
    assert found.effect == pytest.approx(solution[0])
    assert found.high - found.effect == pytest.approx(stats.t.ppf(0.975, 3) * error)
    assert fid_infinity([1000, 2000], [2.8, 2.65]).effect == pytest.approx(2.5)
    with pytest.raises(ValueError, match="two different numbers"):
        fid_infinity([1000, 1000], [2.8, 2.9])


def paired(rng):
    """Two variants of equal mean whose runs share a seed's effect, averaged over two sampling seeds."""
    shared = rng.normal(0, 2, (4, 1, 1)) + rng.normal(0, 1, (4, 2, 1))
    runs = shared + rng.normal(0, 1, (4, 1, 2)) + rng.normal(0, 0.5, (4, 2, 2))
    means = runs.mean(axis=1)
    return t_interval(means[:, 0] - means[:, 1])


DRAWS = {
    "paired by training seed": paired,
    "groups of unlike spread": lambda rng: welch([(1, rng.normal(0, 1, 6)), (-1, rng.normal(0, 2, 8))]),
    "trend": lambda rng: trend(range(5), rng.normal(0, 3, (2, 1)) + rng.normal(0, 1, (2, 5))),
    "fid": lambda rng: fid_infinity([1, 2, 4, 8, 16], rng.normal(0, 1, 5)),
}
"""Intervals of an effect that is 0."""


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_intervals_contain_the_truth_as_often_as_they_say(draw):
    rng = np.random.default_rng(0)
    found = [draw(rng) for _ in range(1500)]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert abs(covered - 0.95) < 0.02  # 3.5 standard errors
    assert covered == np.mean([one.p >= 0.05 for one in found])


def test_runs_of_one_training_seed_taken_as_independent_would_promise_too_much():
    rng = np.random.default_rng(0)
    runs = [rng.normal(0, 1, (4, 1)) + rng.normal(0, 0.3, (4, 2)) for _ in range(1500)]
    naive = [t_interval(one.ravel()) for one in runs]
    assert np.mean([one.low <= 0 <= one.high for one in naive]) < 0.9


def evaluated(size, budgets, sampling_seeds=(0, 1), metric="fid", images=1000):
    """An evaluation's record; `budgets` gives each training seed's value."""
    scores = {
        budget: {
            "runs": [
                {"train_seed": t, "sample_seed": s, metric: value + 0.1 * s}
                for t, value in seeds.items()
                for s in sampling_seeds
            ]
        }
        for budget, seeds in budgets.items()
    }
    return record(f"evaluate-{size}", scores, images=images)


def trained(size, passed=True, weights="trained", **results):
    ratios = [0.9, 0.9, 0.9, 0.9 if passed else 0.99]
    context = {"ratio": {"values": ratios}, "passed": passed}
    settings = {"train": {"seeds": list(SEEDS)}, "gate": {"max_ratio": 0.95}}
    return record(f"train-{size}", {"context": context} | results, **settings) | {"weights": weights}


def record(stage, results, **settings):
    facts = {"schema": 1, "dry_run": False, "weights": "trained", "reference": "training images"}
    machine = {"provenance": {"device": "CPU"}}
    return {"stage": stage, "title": "Made up", "settings": settings, "results": results} | facts | machine


def around(mean, seeds=SEEDS):
    """A value for each training seed."""
    return {seed: mean + float(NOISE[i % 4]) for i, seed in enumerate(seeds)}


def results_of(root, *records, name="ablations", dry_run=False):
    return Results(root, name, {r["stage"]: r | {"dry_run": dry_run} for r in records})


@pytest.fixture
def root(tmp_path):
    """A checkout without results."""
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / FILE).write_text((REPO / FILE).read_text())
    (tmp_path / "results").mkdir()
    return tmp_path


def save(root, name, *records):
    for one in records:
        write_json(root / "results" / name / "records" / f"{one['stage']}.json", one)


def row(table, claim):
    (found,) = table.frame[table.frame["ID"] == claim].to_dict("records")
    return found


def comparisons(table, claim):
    return table.below.frame[table.below.frame["ID"] == claim].to_dict("records")


def test_every_comparison_reads_cells_that_its_benchmark_runs():
    ledger = load_ledger(REPO)
    for claim in ledger.claims:
        sides = [cells for one in claim.differences for _, cells in one.groups]
        cells = [(c.benchmark or claim.benchmark, c.size, b) for c in sides for b in c.budgets]
        if claim.trend:
            cells += [(claim.benchmark, s, b) for s in claim.trend.sizes for b in claim.trend.budgets]
        for name, size, budget in cells:
            benchmark = compose_benchmark(name, (), REPO / "benchmarks")
            assert size in benchmark.sizes and budget in benchmark.budgets, claim.id
        for one in claim.differences:
            assert one.reported is None or one.reported.value(one.metric) > 0


def test_the_ledger_holds_no_number_but_thresholds_and_settings():
    def numbers(tree, key=None):
        if isinstance(tree, dict):
            return set().union(*(numbers(value, k) for k, value in tree.items()))
        if isinstance(tree, list):
            return set().union(*(numbers(value, key) for value in tree))
        return {key} if isinstance(tree, (int, float)) else set()

    tree = yaml.safe_load((REPO / FILE).read_text())
    assert numbers(tree) == {"level", "max_width", "factor", "resolution", "steps", "tokens"}


@pytest.mark.parametrize(
    ("left", "right", "verdict", "why"),
    [
        (1.0, 2.0, HOLDS, "–"),
        (2.0, 1.0, FAILS, "–"),
        (1.0, 1.01, OPEN, "the interval contains 0"),
        (1.0, 1.2, OPEN, "the interval is too wide"),
    ],
)
def test_the_verdict_follows_the_interval(root, left, right, verdict, why):
    noisy = {seed: right + 3 * (value - right) for seed, value in around(right).items()}
    results = results_of(root, evaluated("nomae_cosine", {"8": around(left)}), evaluated("nomae_linear", {"8": noisy}))
    found, (one,) = row(claims(results), "2a-cosine"), comparisons(claims(results), "2a-cosine")
    assert found["Verdict"] == one["Verdict"] == verdict and one["Remarks"] == why
    expected = stats.ttest_rel(list(around(left).values()), list(noisy.values()))
    low, high = expected.confidence_interval()
    assert one["Interval"] == f"[{low:+.3g}, {high:+.3g}]" and one["Interval"] in found["Measured"]
    assert one["Test"] == "paired t test, 4 training seeds"


def test_what_two_variants_share_by_seed_does_not_widen_the_interval(root):
    shared = dict(zip(SEEDS, (0.0, 5.0, 10.0, 20.0), strict=True))
    left, right = ({seed: around(mean)[seed] * mean + shared[seed] for seed in SEEDS} for mean in (1.0, 3.0))
    results = results_of(root, evaluated("nomae_cosine", {"8": left}), evaluated("nomae_linear", {"8": right}))
    assert row(claims(results), "2a-cosine")["Verdict"] == HOLDS


def test_unlike_seeds_are_not_paired(root):
    sides = evaluated("nomae_cosine", {"8": around(1)}), evaluated("nomae_linear", {"8": around(2, (4, 5, 6))})
    (one,) = comparisons(claims(results_of(root, *sides)), "2a-cosine")
    theirs = stats.ttest_ind(list(around(1).values()), list(around(2, (4, 5, 6)).values()), equal_var=False)
    assert one["Test"] == "Welch's t test, 4 and 3 training seeds"
    assert one["p"] == ("< 0.001" if theirs.pvalue < 0.001 else f"{theirs.pvalue:.2g}")


def test_runs_of_two_benchmarks_are_compared_unpaired(root):
    save(root, "ablations", evaluated("emigm", {"8": around(1)}))
    codes = results_of(root, evaluated("maskgit", {"16": around(2)}), name="codes")
    (one,) = comparisons(claims(codes), "1-maskgit")
    assert one["Comparison"] == "ablations: emigm at 8 − maskgit at 16"
    assert one["Test"] == "Welch's t test, 4 and 4 training seeds" and one["Verdict"] == HOLDS
    assert row(claims(codes), "1-mdm")["Verdict"] == NOT_RUN


def test_a_missing_record_reads_not_run_and_never_zero(root):
    table = claims(results_of(root, evaluated("nomae_cosine", {"8": around(1)})))
    assert set(table.frame["Verdict"]) == {NOT_RUN} == set(table.frame["Measured"])
    assert {NOT_RUN} == set(table.below.frame["Effect"]) == set(table.below.frame["Interval"])


def test_a_metric_that_was_not_measured_reads_not_run(root):
    left = evaluated("nomae_cosine", {"8": around(1)})
    left["results"]["8"]["runs"][3]["fid"] = None
    results = results_of(root, left, evaluated("nomae_linear", {"8": around(2)}))
    assert row(claims(results), "2a-cosine")["Verdict"] == NOT_RUN


def test_a_dry_run_never_gives_a_verdict(root):
    records = [evaluated(size, {"8": around(i)}) for i, size in enumerate(("nomae_cosine", "nomae_linear"))]
    table = claims(results_of(root, *records, dry_run=True))
    assert row(table, "2a-cosine")["Verdict"] == DRY
    assert "DRY RUN" in table.title and "DRY RUN" in table.notes[0]
    save(root, "sampling", record("prepare", {}) | {"dry_run": True})
    assert set(claims(load("sampling", root)).frame["Verdict"]) == {NOT_RUN, DRY}


def test_a_failed_context_gate_is_told_with_its_seed(root):
    records = [evaluated(size, {"8": around(i + 1)}) for i, size in enumerate(("nomae_cosine", "nomae_linear"))]
    gates = trained("nomae_cosine"), trained("nomae_linear", passed=False)
    table = claims(results_of(root, *records, *gates))
    told = "nomae_linear FAILED the context gate (training seed 3)"
    assert row(table, "2a-cosine")["Remarks"] == comparisons(table, "2a-cosine")[0]["Remarks"] == told
    assert "nomae_linear" not in row(table, "2b")["Remarks"]


def test_different_numbers_of_images_decide_nothing(root):
    sides = evaluated("nomae_cosine", {"8": around(1)}, images=500), evaluated("nomae_linear", {"8": around(2)})
    (one,) = comparisons(claims(results_of(root, *sides)), "2a-cosine")
    assert one["Verdict"] == OPEN and one["Remarks"] == "not comparable: different numbers of images"


def sampling(root, best, ends):
    budgets = {"tmin2_16": around(best), "exp_16": around(ends[0]), "cfg40_16": around(ends[1])}
    return claims(results_of(root, evaluated("b", budgets), name="sampling"))


def test_a_best_scale_must_beat_both_ends(root):
    assert row(sampling(root, 1, (2, 3)), "7")["Verdict"] == HOLDS
    assert row(sampling(root, 2.5, (2, 4)), "7")["Verdict"] == FAILS
    assert row(sampling(root, 2, (2.001, 4)), "7")["Verdict"] == OPEN


def test_several_budgets_are_averaged_and_a_difference_can_be_held_against_another(root):
    gains = {"2": 4.0, "4": 2.0, "8": 1.0, "16": 0.5}
    budgets = {f"exp_{n}": around(3) for n in gains} | {
        f"ddpm_{n}": {seed: value + gain + 0.1 * seed for seed, value in around(3).items()} for n, gain in gains.items()
    }
    table = claims(results_of(root, evaluated("b", budgets), name="sampling"))
    (solver,), (few,) = comparisons(table, "3b-solver"), comparisons(table, "3b-few-steps")
    assert float(solver["Effect"]) == pytest.approx(-1.875 - 0.15, abs=0.01)
    assert float(few["Effect"]) == pytest.approx(-3.5) and few["Verdict"] == HOLDS


def test_a_factor_allows_what_counts_as_kept(root):
    def guided(mean):
        budgets = {f"tmin{t}_{n}": around(10 if t == 0 else mean) for t in (0, 2, 4) for n in (4, 8, 16)}
        return row(claims(results_of(root, evaluated("b", budgets), name="sampling")), "3c-fid")["Verdict"]

    assert (guided(10.2), guided(11)) == (HOLDS, FAILS)  # limit: 5% above


def test_a_count_has_no_interval_and_no_p(root):
    counts = {"tmin2_16": 28.0, "tmin0_16": 32.0, "tmin2_4": 7.5, "tmin0_4": 8.0}
    records = [record(f"sample-b-{budget}", {"passes": passes}) for budget, passes in counts.items()]
    table = claims(results_of(root, *records, name="sampling"))
    assert row(table, "3c-cost")["Verdict"] == HOLDS and row(table, "3c-cost")["Measured"] == "-3.5; -0.5"
    assert {one["p"] for one in comparisons(table, "3c-cost")} == {"–"}


def ladder(root, fids, seeds=(0, 1)):
    records = [evaluated(size, {"16": around(fid, seeds), "4": around(fid + 1, seeds)}) for size, fid in fids.items()]
    records += [trained(size, flops=10 ** (12 + i)) for i, size in enumerate(fids)]
    times = {"h-4": (1, 1.1, 1, 1.1), "xs-16": (2, 2.1, 2, 2.1)}
    for cell, values in times.items():
        seeds_of = {"train_seeds": list(seeds), "seeds": [0, 1]}
        records.append(record(f"sample-{cell}", {"seconds_per_image": {"values": list(values)}}, **seeds_of))
    return claims(results_of(root, *records, name="digits"))


def test_a_ladder_in_order_has_a_falling_trend(root):
    fids = dict(zip(("xs", "s", "b", "l", "h"), (5.0, 4.0, 3.0, 2.0, 1.0), strict=True))
    table = ladder(root, fids)
    (one,) = comparisons(table, "4a-trend")
    assert one["Verdict"] == HOLDS and float(one["Effect"]) == pytest.approx(-1)
    assert "Page's exact trend test: p < 0.001" in one["Remarks"]
    assert [c["Effect"] for c in comparisons(table, "4a-steps")] == ["-1"] * 4
    assert row(ladder(root, dict(zip(fids, (1, 2, 3, 4, 5), strict=True))), "4a-trend")["Verdict"] == FAILS
    assert row(ladder(root, dict(zip(fids, (3, 1, 5, 1, 3), strict=True))), "4a-trend")["Verdict"] == OPEN


def test_a_claim_fails_when_one_of_its_comparisons_does(root):
    fids = dict(zip(("xs", "s", "b", "l", "h"), (5.0, 4.0, 3.0, 3.5, 1.0), strict=True))
    table = ladder(root, fids)
    assert [c["Verdict"] for c in comparisons(table, "4a-steps")] == [HOLDS, HOLDS, FAILS, HOLDS]
    assert row(table, "4a-steps")["Verdict"] == FAILS


def test_faster_and_better_is_more_sampling_efficient(root):
    fids = dict(zip(("xs", "s", "b", "l", "h"), (5.0, 4.0, 3.0, 2.0, 1.0), strict=True))
    found = row(ladder(root, fids), "4c")
    assert found["Verdict"] == HOLDS and found["Measured"].endswith("-1 [-1, -1]")


def paper_results(root, fid, seeds=(0, 1, 2), images=PAPER_IMAGES):
    runs = evaluated("h", {"128": {0: fid}}, seeds, images=images)
    return claims(
        results_of(
            root, runs, trained("h", weights="released"), record("sample-h-128", {"passes": 179.2}), name="imagenet256"
        )
    )


def test_one_released_model_is_held_against_the_reported_number_over_sampling_seeds(root):
    table = paper_results(root, 1.2)
    fid, cost = comparisons(table, "2-repa")
    assert fid["Comparison"] == "h at 128 − 1.15 × REPA (as reported)"
    assert float(fid["Effect"]) == pytest.approx(1.3 - 1.15 * 1.42, abs=0.001)
    assert fid["Test"] == "t test, 3 sampling seeds" and "released weights: one training run" in fid["Remarks"]
    assert cost["Effect"] == "-0.8" and cost["Verdict"] == HOLDS
    assert row(paper_results(root, 2.5), "2-repa")["Verdict"] == FAILS


def test_one_seed_or_fewer_images_than_the_papers_decide_nothing(root):
    assert comparisons(paper_results(root, 1.2, seeds=(0,)), "2-repa")[0]["Remarks"].startswith("too few seeds")
    few = comparisons(paper_results(root, 1.2, images=10_000), "2-repa")[0]
    assert few["Verdict"] == OPEN and few["Remarks"].startswith("not comparable")


def test_p_values_of_a_page_are_adjusted_together(root):
    sizes = ("nomae_cosine", "nomae_linear", "nomae_exp", "nomae_cosine_elbo", "mae_exp")
    rng = np.random.default_rng(0)
    fids = {size: {seed: i / 4 + rng.normal(0, 0.5) for seed in SEEDS} for i, size in enumerate(sizes)}
    frame = claims(results_of(root, *(evaluated(s, {"8": v}) for s, v in fids.items()))).below.frame
    pairs = [(fids["nomae_cosine"], fids["nomae_linear"]), (fids["nomae_exp"], fids["nomae_cosine"])]
    pairs += [(fids["nomae_cosine"], fids["nomae_cosine_elbo"]), (fids["mae_exp"], fids["nomae_exp"])]
    ps = [stats.ttest_rel(list(a.values()), list(b.values())).pvalue for a, b in pairs]
    assert frame["p (Holm)"].head(4).tolist() == [f"{p:.2g}" for p in holm(ps)]


def test_exp_reveals_few_tokens_early_by_computation_alone(root):
    found = row(all_claims(root), "6")
    assert found["Verdict"] == HOLDS and found["Measured"].startswith("-")


def test_the_whole_ledger_lists_every_claim_even_without_records(root):
    table = all_claims(root)
    assert table.frame["ID"].tolist() == [claim.id for claim in load_ledger(REPO).claims]
    assert set(table.frame["Verdict"]) == {NOT_RUN, HOLDS}  # what is computed needs no record


def test_a_benchmark_without_claims_says_so(root):
    table = claims(results_of(root, record("prepare", {}), name="cifar10"))
    assert table.notes == ("No claim of benchmarks/claims.yaml is tested on cifar10.",)
    assert table.frame.empty and table.markdown().startswith("## Claims")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("level: 0.95", "levle: 0.95", "unknown key .*levle; did you mean 'level'"),
        ("level: 0.95", "level: 95", "level = 95.0 is outside"),
        ("expect: lower", "expect: less", "expect = 'less'"),
        ("metric: passes", "metric: pases", "unknown metric .* 'pases'; did you mean 'passes'"),
        ("id: 2b", "id: 2c", "two claims have the id 2c"),
        ("method: REPA", "method: REAP", "unknown reported method 'REAP'; did you mean 'REPA'"),
        ("factor: 1.05", "factor: -1", "factor = -1.0: must be above 0"),
    ],
)
def test_a_mistake_in_the_ledger_is_one_message(root, old, new, message):
    text = (root / FILE).read_text()
    (root / FILE).write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        all_claims(root)


def test_a_missing_ledger_is_named(root):
    (root / FILE).unlink()
    with pytest.raises(ConfigError, match=f"{FILE}: no such file"):
        all_claims(root)


def test_the_records_of_the_digits_at_head_answer_their_claims(root):
    """The stages' own records hold what the ledger reads."""
    names = ["results/digits/records"]
    archive = subprocess.run(["git", "archive", "HEAD", *names], cwd=REPO, capture_output=True)
    if archive.returncode:
        pytest.skip("no commit with results of the digits here")
    subprocess.run(["tar", "-x", "-C", root], input=archive.stdout, check=True)
    table = claims(load("digits", root))
    assert [c for c, v in zip(table.frame["ID"], table.frame["Verdict"], strict=True) if v == NOT_RUN] == ["4b"]


def test_the_notebook_saves_the_ledger(root, monkeypatch):
    save(root, "ablations", evaluated("emigm", {"8": around(1)}), evaluated("mar", {"8_exact": around(2)}))
    monkeypatch.chdir(root)
    notebook = nbformat.read(REPO / "notebooks" / "claims.ipynb", as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    exec("\n".join([code[0], 'benchmark = "ablations"', *code[1:]]), {})
    page = (root / "results/ablations/claims.md").read_text()
    assert page.startswith("# Claims of the paper on ablations") and "\n## Comparisons" in page
    frame = pd.read_csv(root / "results/ablations/claims.csv", dtype=str, keep_default_na=False)
    assert frame.set_index("ID").loc["1-mar", "Verdict"] == HOLDS
    assert len(pd.read_csv(root / "results/ablations/claims-comparisons.csv")) == 8
    assert json.loads((REPO / "notebooks" / "claims.ipynb").read_text())["nbformat"] == 4
