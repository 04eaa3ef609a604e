"""The notebooks of the ledger, of Figures 2, 3 and 7, of convergence, memorisation and Tables 1 and 5 to 7, run cell by
cell on simulated records (no number in this file was measured), and the benchmarks that they rest on."""

import dataclasses
import functools
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_up import cells_of, run_notebook
from simulated import SIZES, simulate, write_records

from emigm.config.benchmark import load_benchmark
from emigm.config.compose import params_file
from emigm.flops import parameters
from emigm.model.model import EMIGM
from emigm.paper.claims import load_claims
from emigm.paper.settings import PAPER_MODELS, PAPER_TRAIN

REPO = Path(__file__).parents[1]
CLAIMS = load_claims(REPO)
EVIDENCE = [
    "claims",
    "convergence",
    "figure2",
    "figure3",
    "figure7",
    "memorisation",
    "table1",
    "table5",
    "table6",
    "table7",
]
composed = functools.cache(lambda name: load_benchmark(REPO / params_file(name)))


def effect(cell):
    """FID falls with N, with the size and with DPM-Solver; under linear it is worse at few steps and better at many."""
    digits = "".join(c for c in cell.budget.split("_")[-1] if c.isdigit()) or cell.budget.split("_")[0]
    few, kind = int(digits) <= 8, cell.budget.split("_")[0]
    linear = (1.0 if few else -1.0) * (kind == "linear" or cell.size == "mae_linear")
    scale = {"scale15": -1.0, "scale40": 2.0, "scale60": 4.0}.get(kind, 0.0)
    guided = -0.8 * (kind.startswith("tmin") or "guided" in cell.budget)
    size = -0.3 * (SIZES.index(cell.size) if cell.size in SIZES else 0) + 1.0 * (cell.snapshot is not None)
    return 3 / int(digits) + linear + scale + guided + size + (kind == "ddpm") + 3 * (cell.size == "mdm")


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
    (root / "results").mkdir()
    (root / "dvc.yaml").touch()
    shutil.copy(REPO / "params.yaml", root)
    shutil.copytree(REPO / "benchmarks", root / "benchmarks", symlinks=True)
    return root


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
    if name.startswith(("figure", "conv", "memo", "table1")):
        assert "not run" in reading(tmp_path / "empty").splitlines()[0]
    first = {path.name: path.read_bytes() for path in (tmp_path / "full").iterdir()}
    run(name, out=tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == first


def test_the_ledgers_files_hold_every_claim_and_comparison(run, tmp_path):
    found = run("claims", out=tmp_path)
    claims, comparisons = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("claims", "comparisons"))
    assert claims["ID"].tolist() == [claim.id for claim in CLAIMS.claims for _ in claim.at]
    assert len(comparisons) == len(found["ledger"].outcomes)
    page = (tmp_path / "claims.md").read_text()
    assert page.index("MNIST-5k (49 tokens), 22 conclusions") < page.index("Amended on 2026-11-23")
    assert ": lower by" in page and "higher by" in page and "holds at some N only" in page
    assert (tmp_path / "effects.png").stat().st_size > 10_000
    text = reading(tmp_path)
    assert text.startswith("**MNIST-5k (49 tokens), holds: ") and "**ImageNet 512×512, not run: 2.**" in text  # noqa: RUF001


def test_kid_worse_than_class_shuffle_beside_a_better_fid_is_said(run):
    check = run("claims")["kid_against_shuffle"]
    shuffle = pd.DataFrame({"baseline": "class_shuffle", "metric": ["fid", "kid"], "mean": [11.0, 0.25]})
    cells = pd.DataFrame({"size": ["a", "b"], "budget": "16", "snapshot": np.nan, "fid": 5.0, "kid": [0.4, 0.1]})
    assert check(cells, shuffle).endswith("while FID is better: 1 of 2 models and budgets: a at 16 (0.4).")
    assert check(cells.assign(kid=0.1), shuffle).endswith("while FID is better: no model.")
    assert check(cells, shuffle.iloc[:0]) == ""


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
    from emigm.report import conclusions

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


def lines_of(panel):
    return {container.get_label(): container[0] for container in panel.containers}


def test_figure_2_draws_each_choice_over_training(run):
    found = run("figure2")
    panels, frame = found["axes"][0], found["frame"]
    assert len(panels) == 5
    for panel, rows in zip(panels, found["panels"].values(), strict=True):
        assert set(lines_of(panel)) == set(rows.values())
    curve = lines_of(panels[3])["t ≥ 0.2"]
    assert list(curve.get_xdata()) == [50, 100]
    ours = frame[(frame["size"] == "emigm") & (frame["budget"] == "16")]
    assert curve.get_ydata() == pytest.approx(
        [ours[s]["fid"].mean() for s in (ours["snapshot"].eq(0.5), ours["snapshot"].isna())]
    )


def test_figure_3_draws_every_n_and_the_cost_beside_it(run):
    found = run("figure3")
    *panels, cost = found["axes"][0]
    assert list(lines_of(panels[0])["exp"].get_xdata()) == [4, 8, 16, 32]
    assert list(lines_of(panels[2])["s > 0.2"].get_xdata()) == [8, 16, 32]
    assert {line.get_label() for line in cost.lines} == {"s > 0.2", "every step", "s > 0.4", "none"}


def test_figure_7_draws_fid_against_the_scales_of_the_sweep(run):
    found = run("figure7")
    assert list(found["drawn"]["sample.cfg_scale"]) == [1, 1.25, 1.5, 2, 3, 4, 6]
    assert "Tested: scale15_16, chosen on training seeds 10, 11." in found["sentences"]


# The benchmarks behind the figures


@functools.cache
def figure2_panels():
    source = next(cell.source for cell in cells_of("figure2")[1] if "panels = {" in cell.source)
    found = {}
    exec(source[source.index("panels = {") : source.index("missing")], found)
    return found["panels"]


SETTING = {"(a)": ("train", "schedule"), "(b)": ("train", "weight"), "(c)": ("model", "mae"), "(d)": ("train", "t_min")}
SETTING |= {"(e)": ("model", "cfg_with_mask")}
"""Panel of Figure 2 -> part of the configuration and key that differ."""


@pytest.mark.parametrize("panel", figure2_panels(), ids=lambda p: p[0])
def test_the_runs_of_a_panel_of_figure_2_differ_in_its_setting_alone(panel):
    title, budget, fixed = panel
    bench, rows, (part, key) = composed("ablations"), figure2_panels()[panel], SETTING[title[:3]]
    configs = {row: {"model": bench.model_config(row), "train": bench.train_config(row)} for row in rows}
    values = {row: getattr(config[part], key) for row, config in configs.items()}
    words = {"False": "off", "True": "on", "one": "1", "elbo": "γ′/γ"}  # noqa: RUF001
    labels = {row: f"t ≥ {v:g}" if key == "t_min" else words.get(str(v), str(v)) for row, v in values.items()}
    assert labels == rows and len(set(values.values())) == len(values)
    first = next(iter(configs.values()))
    for row, config in configs.items():
        config[part] = dataclasses.replace(config[part], **{key: getattr(first[part], key)})
        assert config == first, row
        sample = bench.sample_config(row, budget)
        assert sample.steps == 16 and (sample.cfg_scale != 1) == ("guided" in fixed)


@pytest.mark.parametrize(("name", "steps"), [("sampling", (4, 8, 16, 32)), ("imagenet256-sampling", (8, 64, 256))])
def test_the_curves_of_figure_3_differ_in_what_its_panels_say(name, steps):
    bench = composed(name)
    (size,) = bench.sizes
    panels = {
        "schedule": ("exp", "cosine", "linear"),
        "solver": ("exp", "ddpm"),
        "cfg_interval": ("tmin0", "tmin2", "tmin4"),
    }
    for key, prefixes in panels.items():
        for n in steps if key != "cfg_interval" else steps[1:]:
            cells = [bench.sample_config(size, f"{prefix}_{n}") for prefix in prefixes]
            assert {c.steps for c in cells} == {n} and len({getattr(c, key) for c in cells}) == len(prefixes)
            alike = {"x0_clip": None, "solver": "dpm-solver", key: getattr(cells[0], key)}
            assert len({dataclasses.replace(c, **alike) for c in cells}) == 1
            if key == "cfg_interval":
                assert [c.cfg_interval[0] for c in cells] == [0.0, 0.2, 0.4]


@pytest.mark.parametrize("name", ["sampling", "imagenet256-sampling"])
def test_the_sweep_of_figure_7_varies_the_scale_alone(name):
    bench, sweep = composed(name), next(claim.sweep for claim in CLAIMS.claims if claim.id == "7")
    none, *cells = [bench.sample_config(bench.sizes[0], budget) for budget in sweep]
    scales = [none.cfg_scale, *(c.cfg_scale for c in cells)]
    assert scales == sorted(set(scales)) and scales[0] == 1
    assert len({dataclasses.replace(c, cfg_scale=2.0) for c in cells}) == 1
    other = {"cfg_scale": 2.0, "cfg_interval": cells[0].cfg_interval, "solver_steps": cells[0].solver_steps}
    assert dataclasses.replace(none, **other) == dataclasses.replace(cells[0], cfg_scale=2.0)


SYSTEMS = {  # as Table 1 and the official code of each have it: masking, weight, order; p(token)
    ("codes", "maskgit"): ("exact_count", "one", "confidence", "categorical"),
    ("ablations", "mar"): ("truncated_normal", "one", "exact", "diffusion"),
    ("ablations", "mar_cosine"): ("exact_count", "one", "exact", "diffusion"),
    ("codes", "mdm"): ("independent", "elbo", "binomial", "categorical"),
    ("ablations", "emigm"): ("independent", "one", "binomial", "diffusion"),
}


@pytest.mark.parametrize("where", SYSTEMS, ids=lambda w: w[1])
def test_the_systems_of_table_1_are_configured_as_the_paper_says(where):
    name, size = where
    bench = composed(name)
    train, model, sample = bench.train_config(size), bench.model_config(size), bench.sample_config(size, "16")
    assert (train.masking, train.weight, sample.order, model.conditional) == SYSTEMS[where]
    assert sample.cfg_scale == 1 and model.tokens == 49


def test_table_5_says_which_benchmark_takes_what(run, tmp_path):
    run("table5", out=tmp_path)
    frame = pd.read_csv(tmp_path / "table5.csv").set_index("Method")
    assert (
        "imagenet256," in frame.loc["MAR", "In the benchmarks"]
        and "imagenet512" not in frame.loc["MAR", "In the benchmarks"]
    )
    assert frame.loc["DC-AE", "In the benchmarks"] == "imagenet512"
    assert "codes" not in frame.loc["DPM-Solver", "In the benchmarks"]
    assert frame.loc["DC-AE", "License"] == "Apache-2.0 license"


@pytest.mark.parametrize(("name", "resolution"), [("table6", 256), ("table7", 512)])
def test_the_configured_recipe_is_the_papers(run, tmp_path, name, resolution):
    run(name, benchmark="ladder", out=tmp_path)
    frame = pd.read_csv(tmp_path / f"{name}.csv", dtype=str).set_index("Setting")
    assert (frame[f"Configured in imagenet{resolution}"] == "the same").all()
    assert set(frame.loc["Epochs"]) == {"800", "the same"}
    assert frame.loc["Learning rate (peak)", "XS (paper)"] == "0.0008"
    assert frame.loc["MLP width", "L (paper)"] == "1280"
    assert frame.loc["Transformer blocks (encoder + decoder)", "B (paper)"] == "12+12"
    assert frame.loc["Params", "L (paper)"] == "478M"
    assert "The official scripts of XS and S name a batch of 1,024" in (tmp_path / f"{name}.md").read_text()
    own = pd.read_csv(tmp_path / f"{name}-settings.csv", dtype=str).set_index("Setting")
    assert own.loc["Batch size", "h"] == "64" and own.loc["Mask schedule", "h"] == "exp, t ≥ 0"


def test_a_configuration_that_differs_from_the_paper_is_named(run, tmp_path):
    here = checkout(tmp_path)
    path = here / "benchmarks" / "imagenet256" / "params.yaml"
    path.write_text(path.read_text().replace("batch: 2048", "batch: 1024").replace("width: 448", "width: 440"))
    run("table6", here, out=tmp_path / "out")
    frame = pd.read_csv(tmp_path / "out" / "table6.csv").set_index("Setting")["Configured in imagenet256"]
    assert frame["Batch size"] == "; ".join(f"{s}: 1,024" for s in ("XS", "S", "B", "L", "H"))
    assert frame["Epochs"].startswith("XS: 400;") and frame["Transformer width"] == "XS: 440"
    assert frame["Params"].startswith("XS: ") and frame["MLP blocks"] == "the same"


CONFIGS = [
    *PAPER_MODELS.values(),
    *(composed(n).model_config(s) for n, s in (("codes", "mdm"), ("ablations", "fake_token"))),
]


@pytest.mark.parametrize("cfg", CONFIGS, ids=range(len(CONFIGS)))
def test_parameters_in_closed_form_are_the_modules(cfg):
    with torch.device("meta"):
        assert parameters(cfg) == sum(p.numel() for p in EMIGM(cfg).parameters())


def test_the_papers_recipe_is_the_benchmarks():
    ours = composed("imagenet256").train_config("xs")
    machine = {"precision": PAPER_TRAIN.precision, "checkpoint_every": PAPER_TRAIN.checkpoint_every}
    assert dataclasses.replace(ours, **machine) == PAPER_TRAIN


def test_scores_of_settings_with_names_of_their_own_stand_in_the_order_of_their_settings(run, tmp_path):
    found = run("scores", benchmark="sampling", out=tmp_path)
    frame = pd.read_csv(tmp_path / "scores.csv", dtype=str)
    assert {"Guidance", "Sampling"} <= set(frame)
    settings = frame["Guidance"][frame["N"] != "–"]  # noqa: RUF001
    assert 1 < settings.nunique() == 1 + (settings != settings.shift()).iloc[1:].sum()
    assert found["more"].frame["Sampling"].iloc[0] in composed("sampling").budgets
    text = reading(tmp_path)
    assert re.search(r"over \d+ models and settings: from [\d.]+ ± [\d.]+ \(eMIGM-B, \w+\) to ", text)
    assert "From N =" not in text
