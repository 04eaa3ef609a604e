"""The notebooks of the evidence run cell by cell on simulated records (no number in this file was measured), and the
benchmarks that they rest on."""

import functools
import re
import shutil
from dataclasses import replace

import made_up
import numpy as np
import pandas as pd
import pytest
from made_up import REPO, contents, run_notebook
from simulated import SIZES, simulate, steps_of, write_records

from emigm.config.benchmark import load_benchmark
from emigm.config.compose import params_file
from emigm.flops import mean_training_step
from emigm.paper.claims import load_claims
from emigm.report import conclusions
from emigm.report.ledger import VERDICTS
from emigm.report.tables import NONE

CLAIMS = load_claims(REPO)
FIGURES = ["figure2", "figure3", "figure7", "figure8"]
EVIDENCE = ["claims", "convergence", *FIGURES, "memorisation", "table1", "table5", "table6", "table7", "table9"]
composed = functools.cache(lambda name: load_benchmark(REPO / params_file(name)))


def effect(cell):
    """FID falls with N, with the size and with DPM-Solver; under linear it is worse at few steps."""
    n, kind = steps_of(cell.budget), cell.budget.split("_")[0]
    linear = 1.0 * (n <= 8 and (kind == "linear" or cell.size.endswith("linear")))
    scale = {"scale_15": -1.0, "scale_40": 2.0, "scale_60": 4.0}.get(cell.budget, 0.0)
    size = -0.3 * (SIZES.index(cell.size) if cell.size in SIZES else 0) + 0.1 * (cell.snapshot is not None)
    return 3 / n + linear + scale - 0.8 * (kind in ("late", "every")) + size + 3 * (cell.size == "mdm")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A checkout with the records of the whole family."""
    root = checkout(tmp_path_factory.mktemp("evidence"))
    write_records(root, simulate(CLAIMS, effect, noise=0.05))
    return root


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return checkout(tmp_path_factory.mktemp("empty"))


def checkout(root):
    return made_up.checkout(root, "params.yaml", "benchmarks")


@pytest.fixture
def run(root):
    """Run a notebook in the checkout; returns its variables."""
    return lambda name, here=root, **settings: run_notebook(name, here, **settings)


def reading(folder):
    return (folder / "reading.md").read_text()


@pytest.mark.parametrize("name", EVIDENCE)
def test_a_notebook_runs_with_and_without_records_and_saves_only_where_it_is_told(run, root, empty, name, tmp_path):
    before = sorted(path for path in root.rglob("*"))
    run(name)
    assert sorted(path for path in root.rglob("*")) == before
    run(name, out=tmp_path / "full")
    assert reading(tmp_path / "full").strip() and "nan" not in reading(tmp_path / "full")
    run(name, empty, out=tmp_path / "empty")
    run(name, out=tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "full")


def test_a_panel_of_figure_2_compares_at_least_two_models(run, root, empty, tmp_path):
    fewer = shutil.copytree(root, tmp_path / "fewer")
    for record in fewer.glob("results/ablations/records/*fake_token*"):
        record.unlink()
    drawn = ["".join(title[1] for title in run("figure2", here)["panels"]) for here in (root, fewer, empty)]
    assert drawn == ["abcde", "abcd", "abcde"]


def test_the_ledgers_files_hold_every_claim_and_comparison(run, tmp_path):
    found = run("claims", out=tmp_path)
    claims, comparisons = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("claims", "comparisons"))
    entries = found["entries"]
    assert claims["ID"].tolist() == [claim.id for claim in CLAIMS.claims for _ in claim.at]
    assert len(comparisons) == sum(len(e.given) + len(e.outcomes) for e in entries)
    assert set(claims["Verdict"]) <= set(VERDICTS) and claims["Verdict"].nunique() > 3
    page = (tmp_path / "claims.md").read_text()
    assert page.count("<details>") == page.count("</details>") == len(entries)
    places = [page.index(f"## {heading}") for heading in (*CLAIMS.grounds, "This project's questions", "Amendments")]
    assert places == sorted(places)
    decided = next(e for e in entries if e.verdict in ("holds", "does not hold") and e.deciding.comparison.tested)
    assert f"**{decided.verdict}**" in page and decided.deciding.plain in page and "../figure2/figure2.ipynb" in page
    assert "../../../ladder/notebooks/figure4/figure4.ipynb" in page and all(c.limits in page for c in CLAIMS.claims)
    assert {p.name for p in tmp_path.glob("*.png")} == {"effects-1.png", "effects-5.png"}
    front, tally = conclusions.front(found["table"]), pd.read_csv(tmp_path / "tally.csv", index_col="Data")
    assert tally.replace(NONE, "0").astype(int).sum(axis=1).to_dict() == {
        data: sum(e.data == data and not e.claim.question for e in entries) for data in CLAIMS.grounds
    }
    assert tally.loc[CLAIMS.ground("imagenet512"), "not run"] == "4"
    assert len(front) == 5 and all(any(f"**{verdict}**" in one for verdict in VERDICTS) for one in front)
    assert front[3].startswith("At equal training FLOPs the larger model is better (Figure 4b): **")
    assert re.search(r": H at N = 16 < (XS|B) \(equal FLOPs\) at N = 16: [\d.]+ and [\d.]+, gain ", front[3])


def test_claims_that_were_measured_on_several_data_stand_side_by_side(run):
    found = run("claims")
    here = [e for e in found["entries"] if e.deciding and e.deciding.margin and not e.claim.question]
    one = next(e for e in here if e.verdict == "holds")
    other = replace(one, data="Others", verdict="does not hold")
    (row,) = found["across"]([*here, other]).to_dict("records")
    units = f"{one.deciding.gain.effect / one.deciding.margin:+.1f}"
    assert row == {"Claim": f"**{found['capital'](one.claim.claim)}**", one.data: f"holds ({units})",
                   "Others": f"does not hold ({units})"}  # fmt: skip
    again = found["table"].iloc[[0]].assign(Front="yes", Data="Others", Effect="a_4 < b_4: 1 and 2")
    (said,) = conclusions.front(pd.concat([found["table"].iloc[[0]].assign(Front="yes"), again]))
    assert said.endswith(f"; on Others **{again['Verdict'].item()}**: a at N = 4 < b at N = 4: 1 and 2.")
    assert found["across"](here).empty


def test_what_each_claim_can_see_is_told_before_the_runs(run, empty, tmp_path):
    power = pd.DataFrame(run("claims", empty)["sees"]).set_index(["Claim", "Data"])["Smallest effect found"]
    ours = power.xs("MNIST-5k (49 tokens)", level="Data")
    assert ours["2a-cosine"] > ours["2c"] > ours["2d-end"] and ours["7-is"] == "spread not known before the runs"
    assert re.fullmatch(r"[\d.]+ to [\d.]+ FID \([\d.]+ to [\d.]+ margins\)", ours["2c"])
    assert power["2-repa"].item() == "8 runs of each side for the paper's difference (0.063 FID)"


def test_kid_worse_than_class_shuffle_beside_a_better_fid_is_said(run):
    check = run("claims")["kid_against_shuffle"]
    shuffle = pd.DataFrame({"baseline": "class_shuffle", "metric": ["fid", "kid"], "mean": [11.0, 0.25]})
    cells = pd.DataFrame({"size": ["a", "b"], "budget": "16", "snapshot": np.nan, "fid": 5.0, "kid": [0.4, 0.1]})
    said = check(cells, shuffle)
    assert said.endswith("while FID is better: 1 of 2 models and sampling configurations: a at 16 (0.4).")
    assert check(cells.assign(kid=0.1), shuffle) == check(cells, shuffle.iloc[:0]) == ""


def test_a_verdict_on_fid_that_another_metric_contradicts_is_said(run):
    found = run("claims")
    assert "Neither KID, precision, recall nor FID of infinitely many images contradicts" in found["contrary"][0]
    ledger, check = found["ledger"], found["disagreements"]
    for (cell, metric), values in list(ledger.values.items()):
        if metric == "kid":
            ledger.values[cell, metric] = -values
    texts = check(ledger)
    assert texts and all("by FID a gain of" in text and "to the contrary KID (" in text for text in texts)


def test_how_fid_goes_with_the_context_ratio_is_said(run):
    check, fids = run("claims")["with_context"], np.arange(6.0)
    runs = pd.DataFrame({"size": "a", "budget": "16", "snapshot": np.nan, "train_seed": range(6), "fid": fids})
    assert "Over 6 training runs FID at N = 16 correlates 1.00" in check(runs.assign(gate_ratio=0.5 + fids / 20))
    assert check(runs.assign(gate_ratio=0.7)) == ""


SPLITS = list(1 + 0.01 * np.random.default_rng(0).standard_normal(20))


@pytest.mark.parametrize(
    ("train", "splits", "said"),
    [
        (39.9, SPLITS, "so that its images are no nearer to training images than chance explains"),
        (36.0, SPLITS, "(eMIGM-S), so that its images are nearer to training images than chance explains"),
        (36.0, [], "was not measured, so this says nothing of copying"),
    ],
)
def test_memorisation_is_judged_by_what_real_images_do(run, tmp_path, monkeypatch, train, splits, said):
    from emigm.records import frame

    runs, records = conclusions.runs_of, frame.read_all
    near = {"nearest_train": lambda f: f["size"].map({"s": train}).fillna(39.99), "nearest_holdout": 40.0}
    monkeypatch.setattr(conclusions, "runs_of", lambda *names: runs(*names).assign(**near))  # one size may copy

    def read_all(root, name):
        found = records(root, name)
        found["reference"]["results"]["nearest"] = {"real_ratio": {"values": splits}, "holdout_to_train": 38.0}
        return found

    monkeypatch.setattr(frame, "read_all", read_all)
    run("memorisation", benchmark="ladder", out=tmp_path)
    assert said in reading(tmp_path)
    assert "nearer to training images than to as many held-out ones in" in reading(tmp_path)
    nearer = r"real images that nobody trained on 38.0: (\d+) of (\d+) runs lie nearer than those"
    found, runs = re.search(nearer, reading(tmp_path)).groups()
    assert (0 < int(found) < int(runs)) == (train < 38)


# The benchmarks behind the figures


WIDTHS = {"width", "head_width", "heads"}
DIFFERENCES = {  # claims -> what may differ between the sides of their comparisons
    "2a-cosine 2a-exp 2b-schedule 9-log-exp": {"schedule"},
    "2b-weight": {"weight", "mask_times"},
    "2c": {"mae"},
    "2d-faster 2d-end 2d-large q-tmin4": {"t_min"},
    "2e": {"cfg_with_mask"},
    "3a-few": {"sample.schedule"},
    "3a-steps t-steps": {"sample.steps"},
    "3b 3b-imagenet": {"sample.solver", "sample.solver_steps"},
    "3c-keeps": {"sample.cfg_interval", "sample.cfg_schedule"},
    "8-late 8-best": {"sample.cfg_interval"},
    "7-fid 7-is": {"sample.cfg_scale"},
    "1-mar": {"masking", "schedule", "t_min", "cfg_with_mask", "sample.order", "sample.schedule"},
    "4b": {"steps", *WIDTHS},
    "t-size": WIDTHS,
    "q-clipped": {"sample.solver", "sample.solver_steps", "sample.x0_clip"},
}


def settings(cell):
    """Every setting that makes the images of a cell."""
    bench = composed(cell.benchmark)
    model, train = bench.model_config(cell.size), bench.train_config(cell.size)
    parts = {**vars(model), **vars(train), "mask_times": train.shares_times(model)}
    return parts | {f"sample.{k}": v for k, v in vars(bench.sample_config(cell.size, cell.budget)).items()}


@pytest.mark.parametrize(("name", "allowed"), [(n, d) for names, d in DIFFERENCES.items() for n in names.split()])
def test_the_sides_of_a_comparison_differ_in_what_the_claim_is_about_alone(name, allowed):
    claim = next(claim for claim in CLAIMS.claims if claim.id == name)
    differ = set()
    for one in claim.at[0].compared(claim.compare):
        first, *others = map(settings, one.cells)
        differ |= {key for other in others for key in first if first[key] != other[key]}
        assert {cell.snapshot for cell in one.cells} == {one.cells[0].snapshot}
    assert differ == allowed


@pytest.mark.parametrize("source", ["2", "3a", "3b", "3c", "7", "8"])
def test_guidance_is_as_in_the_figure(source):
    claims = [c for c in CLAIMS.claims if c.source.startswith(f"Figure {source}") and not c.question]
    cells = {c for claim in claims for c in claim.cells(claim.at[0])}
    scales = {(settings(c)["sample.cfg_scale"] != 1, settings(c)["sample.cfg_schedule"]) for c in cells}
    guided = {schedule for on, schedule in scales if on}
    expected = {"3a": {"linear"}, "3b": {"linear"}, "2": set(), "3c": {"constant", "linear"}}
    assert guided == expected.get(source, {"constant"})


SYSTEMS = {  # as Table 1 and the official code of each have it: masking, weight, order; p(token)
    ("codes", "maskgit"): ("exact_count", "one", "confidence", "categorical"),
    ("ablations", "mar"): ("truncated_normal", "one", "exact", "diffusion"),
    ("ablations", "mar_cosine"): ("exact_count", "one", "exact", "diffusion"),
    ("codes", "mdm"): ("independent", "elbo", "binomial", "categorical"),
    ("ladder", "s"): ("independent", "one", "binomial", "diffusion"),
}


@pytest.mark.parametrize("where", SYSTEMS, ids=lambda w: w[1])
def test_the_systems_of_table_1_are_configured_as_the_paper_says(where):
    name, size = where
    bench = composed(name)
    train, model, sample = bench.train_config(size), bench.model_config(size), bench.sample_config(size, "16_plain")
    assert (train.masking, train.weight, sample.order, model.conditional) == SYSTEMS[where]
    assert sample.cfg_scale == 1 and model.tokens == 49


@pytest.mark.parametrize(
    ("where", "size", "like"),
    [("ladder", "xs_equal", "ladder/h"), ("ladder", "b_equal", "ladder/h")]
    + [(codes, system, "ladder/s") for codes in ("codes", "codes64", "codes16") for system in ("maskgit", "mdm")]
    + [("colour-codes", system, "colour/emigm") for system in ("maskgit", "mdm")],
)
def test_what_is_to_have_equal_training_flops_has(where, size, like):
    def flops(benchmark, of):
        train = benchmark.train_config(of)
        return mean_training_step(benchmark.model_config(of), train, 10_000) * train.steps

    name, other = like.split("/")
    assert flops(composed(where), size) == pytest.approx(flops(composed(name), other), rel=0.01)


def test_table_5_says_which_benchmark_takes_what(run, tmp_path):
    run("table5", out=tmp_path)
    frame = pd.read_csv(tmp_path / "table5.csv").set_index("Method")
    used = frame["In the benchmarks"]
    assert "imagenet256," in used["MAR"] and "imagenet512" not in used["MAR"] and used["DC-AE"] == "imagenet512"
    assert "codes" not in used["DPM-Solver"]
    assert frame.loc["DC-AE", "License"] == "Apache-2.0 license"


@pytest.mark.parametrize(("name", "resolution"), [("table6", 256), ("table7", 512)])
def test_the_configured_recipe_is_the_papers(run, tmp_path, name, resolution):
    run(name, benchmark="ladder", out=tmp_path)
    frame = pd.read_csv(tmp_path / f"{name}.csv", dtype=str).set_index("Setting")
    assert (frame[f"Configured in imagenet{resolution}"] == "the same").all()
    assert frame.loc["Params", "L (paper)"] == "478M" and frame.loc["Learning rate (peak)", "L (paper)"] == "0.0008"
    assert "and the official scripts have 1,024" in (tmp_path / f"{name}.md").read_text()
    own = pd.read_csv(tmp_path / f"{name}-settings.csv", dtype=str).set_index("Setting")
    assert own.loc["Batch size", "h"] == "64" and own.loc["Mask schedule", "h"] == "exp, t ≥ 0.2"


def test_a_configuration_that_differs_from_the_paper_is_named(run, tmp_path):
    here = checkout(tmp_path)
    path = here / "benchmarks" / "imagenet256" / "params.yaml"
    path.write_text(path.read_text().replace("batch: 2048", "batch: 1024").replace("width: 448", "width: 440"))
    run("table6", here, out=tmp_path / "out")
    frame = pd.read_csv(tmp_path / "out" / "table6.csv").set_index("Setting")["Configured in imagenet256"]
    assert frame["Batch size"] == "; ".join(f"{s}: 1,024" for s in ("B", "L", "H"))
    assert frame["Epochs"].startswith("B: ") and frame["Transformer width"] == "XS: 440"
    assert frame["Params"].startswith("XS: ") and frame["MLP blocks"] == "the same"


def test_scores_of_settings_with_names_of_their_own_stand_in_the_order_of_their_settings(run, tmp_path):
    found = run("scores", benchmark="sampling", out=tmp_path)
    frame = pd.read_csv(tmp_path / "scores.csv", dtype=str)
    assert {"Guidance", "Sampling"} <= set(frame)
    settings = frame["Guidance"][frame["N"] != "–"]  # noqa: RUF001
    settings = settings.str.replace(", linear,", "")  # scale and interval
    assert 1 < settings.nunique() == 1 + (settings != settings.shift()).iloc[1:].sum()
    assert found["more"].frame["Sampling"].iloc[0] in composed("sampling").budgets
    text = reading(tmp_path)
    assert re.search(r"over \d+ models and settings: from [\d.]+ ± [\d.]+ \(eMIGM-B, \w+\) to ", text)
    assert "From N =" not in text
