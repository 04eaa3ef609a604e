"""The claims ledger, on records made up here (no number in this file was measured)."""

# ruff: noqa: RUF001
# × and − are meant: they stand in the ledger.

import functools
import json
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from emigm.report.results import NOT_RUN, PAPER_IMAGES, Results, load
from scipy import stats

from emigm.config.compose import compose_benchmark
from emigm.config.errors import ConfigError
from emigm.files import write_json
from emigm.report.claims import DRY, FAILS, HOLDS, OPEN, claims
from emigm.report.ledger import FILE, load_ledger
from emigm.report.statistics import holm

REPO = Path(__file__).parents[1]
SEEDS = (0, 1, 2, 3)
NOISE = np.array([0.05, -0.04, 0.03, -0.05])
"""Of four training seeds; small beside an effect of 1."""


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
    ledger, compose = load_ledger(REPO), functools.cache(lambda name: compose_benchmark(name, (), REPO / "benchmarks"))
    for claim in ledger.claims:
        sides = [cells for one in claim.differences for _, cells in one.groups]
        cells = [(c.benchmark or claim.benchmark, c.size, b) for c in sides for b in c.budgets]
        if claim.trend:
            cells += [(claim.benchmark, s, b) for s in claim.trend.sizes for b in claim.trend.budgets]
        for name, size, budget in cells:
            assert size in compose(name).sizes and budget in compose(name).budgets, claim.id
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
    assert table.notes[-1].startswith("Context gate:") and "Context gate" not in " ".join(table.notes[:-1])


def test_different_numbers_of_images_decide_nothing(root):
    sides = evaluated("nomae_cosine", {"8": around(1)}, images=500), evaluated("nomae_linear", {"8": around(2)})
    (one,) = comparisons(claims(results_of(root, *sides)), "2a-cosine")
    assert one["Verdict"] == OPEN and one["Remarks"] == "not comparable: different numbers of images"


def sampling(root, best, ends):
    low, high = (dict(zip(SEEDS, reversed(around(end).values()), strict=True)) for end in ends)
    budgets = {"tmin2_16": around(best), "exp_16": low, "cfg40_16": high}
    return claims(results_of(root, evaluated("b", budgets), name="sampling"))


def test_a_best_scale_must_beat_both_ends(root):
    assert row(sampling(root, 1, (2, 3)), "7")["Verdict"] == HOLDS
    assert row(sampling(root, 2.5, (2, 4)), "7")["Verdict"] == FAILS
    assert row(sampling(root, 2, (2.01, 4)), "7")["Verdict"] == OPEN


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
    return claims(results_of(root, *records, name="ladder"))


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
    assert fid["Test"] == "t test, 3 sampling seeds"
    assert fid["Remarks"] == "one training seed: nothing of other training runs; released weights"
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
    found = row(claims(results_of(root, name="digits")), "6")
    assert found["Verdict"] == HOLDS and found["Measured"].startswith("-")


def test_the_head_of_a_family_lists_every_claim_even_without_records(root):
    table = claims(results_of(root, name="digits"))
    assert table.frame["Benchmark"].tolist() == [claim.benchmark for claim in load_ledger(REPO).claims]
    assert table.frame["ID"].tolist() == [claim.id for claim in load_ledger(REPO).claims]
    assert set(table.frame["Verdict"]) == {NOT_RUN, HOLDS}  # what is computed needs no record


def test_a_benchmark_without_claims_says_so(root):
    table = claims(results_of(root, record("prepare", {}), name="cifar10"))
    assert table.notes == ("No claim of benchmarks/claims.yaml is tested on cifar10.",)
    assert table.frame.empty and len(table.save()) == 3


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
        ("    reveals: {schedule: exp, steps: 16, tokens: 256}\n", "", "claim 6 has no test"),
    ],
)
def test_a_mistake_in_the_ledger_is_one_message(root, old, new, message):
    text = (root / FILE).read_text()
    (root / FILE).write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        claims(results_of(root, name="digits"))


def test_a_missing_ledger_is_named(root):
    (root / FILE).unlink()
    with pytest.raises(ConfigError, match=f"{FILE}: no such file"):
        claims(results_of(root, name="digits"))


def test_the_records_at_head_answer_every_claim_but_those_of_imagenet(root):
    """The stages' own records hold what the ledger reads."""
    names = {claim.benchmark for claim in load_ledger(REPO).claims} | {"digits"}
    there = [f"results/{name}/records" for name in names if (REPO / "results" / name).is_dir()]
    archive = subprocess.run(["git", "archive", "HEAD", *there], cwd=REPO, capture_output=True)
    if archive.returncode:
        pytest.skip("no commit with these results here")
    subprocess.run(["tar", "-x", "-C", root], input=archive.stdout, check=True)
    frame = claims(load("digits", root)).frame
    assert set(frame["Benchmark"][frame["Verdict"] == NOT_RUN]) == {"imagenet256", "imagenet512"}


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
