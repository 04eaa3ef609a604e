"""Figures 2, 3 and 7 and Tables 1, 5, 6 and 7, on records made up here (no number in this file was measured)."""

# ruff: noqa: RUF001
# γ, ′, ×, ⌈ and – are meant: they are the paper's notation.

import dataclasses
import functools
import os
from pathlib import Path

import numpy as np
import papermill
import pytest
import torch
from emigm.report.ablations import CHOICES, FIGURE3, FIGURE7, figure2, figure3, figure7
from emigm.report.family import FAMILIES, by_training_seed, cell, member
from emigm.report.figures import figure4
from emigm.report.index import write_index
from emigm.report.results import load, thousands
from emigm.report.settings import PAPER_TRAIN, parameters, table5, table6, table7
from emigm.report.systems import SYSTEMS, table1
from scipy import stats

from emigm.config.compose import compose_benchmark
from emigm.model.model import EMIGM
from emigm.paper.settings import PAPER_MODELS
from emigm.records.record import mean_and_spread, write_record
from emigm.report.tables import metrics_table

REPO = Path(__file__).parents[1]
FIGURES = (figure2, figure3, figure7)
TABLES = (table1, table5, table6, table7)
composed = functools.cache(functools.partial(compose_benchmark, folder=REPO / "benchmarks"))


def write_family(root, *names, dry_run=False, failing=()):
    """Records of benchmarks as the stages write them, with made-up numbers; of `failing` sizes the first seed does."""
    (root / "dvc.yaml").touch()
    if not (root / "benchmarks").exists():
        (root / "benchmarks").symlink_to(REPO / "benchmarks")
    here = Path.cwd()
    os.chdir(root)  # records go to the working directory's results/
    try:
        for name in names:
            _write(dataclasses.replace(composed(name), dry_run=dry_run), failing)
    finally:
        os.chdir(here)
    return root


def _write(bench, failing):
    rng = np.random.default_rng(0)
    extractor, images = {"extractor": bench.extractor}, bench.evaluation.images

    def record(stage, results, **settings):
        write_record(bench, stage, results, device="cpu", **settings)

    record("prepare", {"train_images": 1438, "holdout_images": 359, "classes": 10})
    record("extractor", {"features": 64}, **extractor)
    floors = {"holdout": {"fid": {"mean": 1.4}, "isc": {"mean": 6.2}, "images": 359}}
    floors["class_shuffle"] = {"fid": mean_and_spread([4.4, 4.5, 4.6]), "images": 1438}
    record("reference", {"floors": floors, "real": {"images": 1438}}, **extractor)
    for size in bench.sizes:
        train, model = bench.train_config(size), bench.model_config(size)
        worse = 8.0 * (train.weight == "elbo") + 1.5 * (train.schedule == "exp") + 0.5 * (not model.mae)
        of_seed = {seed: 2.2 + worse + 0.3 * rng.standard_normal() for seed in train.seeds}
        ratio = [0.98 if size in failing and seed == train.seeds[0] else 0.8 + 0.02 * worse for seed in train.seeds]
        context = {"ratio": mean_and_spread(ratio), "passed": max(ratio) <= bench.gate.max_ratio}
        trained = {"parameters": parameters(model), "images": train.steps * train.batch, "context": context}
        record(f"train-{size}", trained, size=size, model=model, train=train, gate=bench.gate)
        scores = {}
        for budget in bench.budgets:
            sample = bench.sample_config(size, budget)
            seeds = {"train_seeds": list(train.seeds), "seeds": list(bench.evaluation.seeds), "images": images}
            cost = {"nfe": sample.steps, "passes": sample.steps * (1.9 - sample.cfg_interval[0])}
            record(f"sample-{size}-{budget}", cost, size=size, budget=budget, sample=sample, **seeds)
            more = 3 / sample.steps + 0.7 * abs(sample.cfg_scale - 1.4) + 0.6 * (sample.solver == "ddpm")
            runs = [
                {"train_seed": t, "sample_seed": s, "fid": of_seed[t] + more + 0.1 * s, "isc": 5.0 - 0.1 * s}
                for t in train.seeds
                for s in bench.evaluation.seeds
            ]
            means = {k: np.mean([r[k] for r in runs]) for k in ("fid", "isc")}
            summary = {k: {"mean": v, "train_std": 0.3, "sample_std": 0.1} for k, v in means.items()}
            scores[budget] = {"runs": runs, "summary": summary}
        record(f"evaluate-{size}", scores, size=size, **seeds, **extractor, extractor_identity="0123")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_family(tmp_path_factory.mktemp("checkout"), *FAMILIES["digits"].values(), failing=("nomae_exp", "mdm"))
    (root / "results" / "digits" / "records").mkdir(parents=True)
    (root / "results" / "other" / "records").mkdir(parents=True)  # of no family
    return root


@pytest.fixture
def digits(root):
    return load("digits", root)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def frames(table):
    return [table.frame, *([] if table.below is None else [table.below.frame])]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: c.title)
def test_the_runs_of_a_panel_of_figure_2_differ_in_its_setting_alone(choice):
    bench = composed(FAMILIES["digits"]["training"])
    part, key = choice.setting
    configs = {s: {"model": bench.model_config(s), "train": bench.train_config(s)} for s in choice.variants}
    values = {s: getattr(c[part], key) for s, c in configs.items()}
    as_labelled = {"False": "off", "True": "on", "one": "1", "elbo": "γ′/γ", "0.0": "0"}
    labels = {s: as_labelled.get(str(v), str(v)) for s, v in values.items()}
    assert labels == choice.variants and len(set(values.values())) == len(values)
    first = next(iter(configs))
    for size, config in configs.items():
        config[part] = dataclasses.replace(config[part], **{key: values[first]})
        assert config == configs[first], size
        guided = bench.sample_config(size, choice.budget).cfg_scale != 1
        assert bench.sample_config(size, choice.budget).steps == 8 and guided == ("guided" in choice.fixed)


def test_the_curves_of_figure_3_differ_in_what_its_panels_say():
    bench = composed(FAMILIES["digits"]["sampling"])
    size = bench.sizes[-1]
    for (_, steps, lines), key in zip(FIGURE3, ("schedule", "solver", "cfg_interval"), strict=True):
        for n in steps:
            cells = {line: bench.sample_config(size, f"{line.prefix}_{n}") for line in lines}
            assert {c.steps for c in cells.values()} == {n}
            values = [getattr(c, key) for c in cells.values()]
            assert len(set(values)) == len(lines)
            alike = {"x0_clip": None, "solver": "dpm-solver", key: values[0]}
            assert len({dataclasses.replace(c, **alike) for c in cells.values()}) == 1
    assert [bench.sample_config(size, f"{ln.prefix}_4").cfg_interval[0] for ln in FIGURE3[2][2]] == [0.0, 0.2, 0.4]


def test_figure_7_varies_the_scale_alone():
    bench = composed(FAMILIES["digits"]["sampling"])
    cells = [bench.sample_config(bench.sizes[-1], budget) for budget in FIGURE7]
    scales = [c.cfg_scale for c in cells]
    assert scales == sorted(set(scales)) and scales[0] == 1
    assert len({dataclasses.replace(c, cfg_scale=2.0) for c in cells[1:]}) == 1
    assert dataclasses.replace(cells[0], cfg_scale=2.0, cfg_interval=cells[1].cfg_interval) == dataclasses.replace(
        cells[1], cfg_scale=2.0
    )


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: s.name)
def test_the_systems_of_table_1_are_configured_as_the_paper_says(system, digits):
    row = table1(digits).frame.set_index("Method").loc[system.name]
    assert row["Masking on digits"] == row["Masking (paper)"]
    assert row["Weight on digits"] == row["Weight (paper)"]
    assert row["p(token) on digits"].startswith(row["p(token) (paper)"])


def test_a_training_seeds_fid_is_the_mean_over_its_sampling_seeds(digits):
    runs = [{"train_seed": t, "fid": f} for t, f in ((1, 4.0), (0, 1.0), (1, 6.0), (0, 2.0))]
    assert by_training_seed(runs, "fid") == {0: 1.5, 1: 5.0}
    found = cell(member(digits, "training").results, "emigm", "8")
    n = len(found.fid)
    assert n == len(composed("ablations").train_config("emigm").seeds) and found.mean == pytest.approx(
        np.mean(list(found.fid.values()))
    )
    values = list(found.fid.values())
    low, high = stats.t.interval(0.95, n - 1, np.mean(values), stats.sem(values))
    assert found.half == pytest.approx((high - low) / 2)
    assert found._replace(fid={0: 2.0}).half == 0


def test_every_training_seed_is_a_point_and_failed_ones_are_marked(digits):
    panels = figure2(digits).figure.axes
    assert len(panels) == 10
    n = len(composed("ablations").train_config("emigm").seeds)
    for axes in (panels[0], panels[5]):  # (a): three variants, one of which fails at the first seed
        marks = [line.get_marker() for line in axes.lines if line.get_marker() in ("o", "x")]
        assert (marks.count("o"), marks.count("x")) == (3 * n - 1, 1)
    note = next(n for n in figure2(digits).notes if n.startswith("Context gate"))
    assert f"FAILED (×) by nomae_exp (1 of {n} training seeds), nomae_cosine_elbo ({n} of {n} training seeds)." in note
    assert "passed by every training seed shown" in figure3(digits).caption


def test_drawn_means_and_bars_are_those_of_the_records(digits):
    axes = figure2(digits).figure.axes[0]
    found = cell(member(digits, "training").results, "nomae_linear", "8")
    line, _, (bars,) = axes.containers[0]
    assert line.get_ydata()[0] == pytest.approx(found.mean)
    (low, high), *_ = [segment[:, 1] for segment in bars.get_segments()]
    assert (high - low) / 2 == pytest.approx(found.half)


def test_figure_3_shows_the_cost_of_the_interval_beside_it(digits):
    *_, last, cost = figure3(digits).figure.axes
    assert len(last.containers) == 3
    drawn = {line.get_label(): list(line.get_ydata()) for line in cost.lines}
    assert drawn == {f"$t_{{min}}$ = {t:g}": [n * (1.9 - t) for n in (4, 8, 16)] for t in (0, 0.2, 0.4)}


def test_figure_7_draws_fid_against_the_scales_of_the_records(digits):
    (axes,) = figure7(digits).figure.axes
    assert list(axes.containers[0][0].get_xdata()) == [1.0, 1.25, 1.5, 2.0, 3.0, 4.0]
    assert "0.2 < s ≤ 1" in figure7(digits).caption


def test_floors_are_lines_of_the_fid_panels(digits):
    for make in FIGURES:
        heights = [line.get_ydata()[0] for line in make(digits).figure.axes[0].lines]
        assert {4.5, 1.4} <= {round(float(h), 6) for h in heights}


def test_a_missing_variant_reads_not_run(root, tmp_path):
    write_family(tmp_path, "ablations", "sampling")
    records = tmp_path / "results" / "ablations" / "records"
    for stage in ("train-tmin4", "evaluate-tmin4"):
        (records / f"{stage}.json").unlink()
    picture = figure2(load("ablations", tmp_path))
    assert texts(picture.figure.axes[3]) == ["not run"] and texts(picture.figure.axes[0]) == []
    assert "“not run”: tmin4 at N = 8." in picture.caption
    (tmp_path / "results" / "sampling" / "records" / "sample-b-ddpm_16.json").unlink()
    assert "“not run”: ddpm_16." in figure3(load("ablations", tmp_path)).caption


def test_without_records_the_picture_says_why(root, tmp_path):
    (tmp_path / "results" / "digits" / "records").mkdir(parents=True)
    empty, alone = load("digits", tmp_path), load("other", root)
    for make in FIGURES:
        assert "not run: results/" in " ".join(t.get_text() for t in make(empty).figure.texts)
        assert "belongs to other" in " ".join(t.get_text() for t in make(alone).figure.texts)
        assert all(path.stat().st_size > 1000 for path in make(alone).save())


def test_without_records_tables_read_not_run(root):
    frame = table1(load("other", root)).frame
    assert (frame[[c for c in frame if c.endswith("on other")]] == "not run").all(axis=None)
    below = table1(load("other", root)).below.frame
    assert below["Method"].tolist() == [s.name for s in SYSTEMS] and (below.iloc[:, 1:] == "not run").all(axis=None)


def test_a_member_of_a_family_is_named_by_its_rows_and_drawn_by_its_head(root):
    ablations = load("ablations", root)
    assert set(metrics_table(ablations).frame["Model on ablations"]) >= {"nomae_exp", "emigm"}
    (text, _) = figure4(ablations).figure.texts
    assert text.get_text().startswith("ablations is no ladder of sizes: Figures 2, 3 and 7 on digits")
    page = write_index(root).read_text(encoding="utf-8")
    section = page[page.index("## " + ablations.title) :].split("\n## ")[0]
    assert "in Table 1 and Figures 2, 3 and 7 of digits" in section and "### Table" not in section


def test_a_member_of_a_family_reads_the_family(root):
    assert member(load("codes", root), "training").results.name == "ablations"


def test_scores_name_the_order_and_whether_it_is_the_systems_own(digits):
    below = table1(digits).below.frame
    mar = below[below["Method"] == "MAR"].set_index("Order")
    assert mar.loc["exact, cosine", "Own order"] == "yes" and mar.loc["binomial, exp", "Own order"] == "no"
    assert mar.loc["at once", "Own order"] == "–"
    assert "guidance 1.5" in below[below["Method"] == "eMIGM"]["Order"].str.cat()
    assert below[below["Method"] == "MDM"]["Context gate"].str.startswith("FAILED").all()
    assert below["Method"].tolist()[-2:] == ["Held-out real images (359)", "Class shuffle (1,438)"]
    assert f"FID-{thousands(composed('codes').evaluation.images)} on digits" in below and "IS on digits" in below


def test_different_extractors_are_told(digits, tmp_path):
    assert "scored with the same extractor" in " ".join(table1(digits).below.notes)
    write_family(tmp_path, "ablations", "codes")
    path = tmp_path / "results" / "codes" / "records" / "evaluate-mdm.json"
    path.write_text(path.read_text().replace('"0123"', '"4567"'))
    assert "NOT COMPARABLE" in " ".join(table1(load("codes", tmp_path)).below.notes)


def test_no_cell_is_blank_or_zero(digits, root):
    for results in (digits, load("other", root), load("ablations", root)):
        for make in TABLES:
            for frame in frames(make(results)):
                assert not frame.isin(["", "0.00", "nan", "None"]).any(axis=None), make


def test_a_dry_run_in_the_family_marks_everything_made_of_it(tmp_path):
    write_family(tmp_path, *FAMILIES["digits"].values(), dry_run=True)
    (tmp_path / "results" / "digits" / "records").mkdir(parents=True)
    results = load("digits", tmp_path)
    for make in FIGURES:
        assert make(results).title.startswith("DRY RUN: ") and make(results).notes[0].startswith("DRY RUN: ")
        assert "DRY RUN" in [text.get_text() for text in make(results).figure.texts]
    table = table1(results)
    assert table.title.startswith("DRY RUN: ") and table.below.title.startswith("DRY RUN: ")
    assert {"IS on digits (DRY RUN)"} < set(table.below.frame.columns)
    assert not [c for c in table.below.frame if c.startswith(("FID", "IS")) and "(DRY RUN)" not in c]


def test_only_a_dry_run_is_marked(digits):
    for make in (*FIGURES, *TABLES):
        assert "DRY RUN" not in make(digits).title


@pytest.mark.parametrize("make", FIGURES)
def test_a_figure_is_byte_identical_when_drawn_again(digits, make):
    first = {path: path.read_bytes() for path in make(digits).save()}
    assert {path.suffix for path in first} == {".png", ".svg"} and {p.parent.name for p in first} == {"digits"}
    assert first == {path: path.read_bytes() for path in make(digits).save()}


def test_table_5_says_which_benchmark_takes_what(digits):
    frame = table5(digits).frame.set_index("Method")
    assert frame.loc["MAR", "In the benchmarks"] == "imagenet256"
    assert frame.loc["DC-AE", "In the benchmarks"] == "imagenet512"
    assert frame.loc["DPM-Solver", "In the benchmarks"] == "digits, imagenet256, imagenet512"
    assert "kl16.ckpt" in frame.loc["MAR", "Used here"] and frame.loc["DC-AE", "License"] == "Apache-2.0 license"


@pytest.mark.parametrize(("make", "resolution"), [(table6, 256), (table7, 512)])
def test_the_configured_recipe_is_the_papers(digits, make, resolution):
    frame = make(digits).frame.set_index("Setting")
    assert (frame[f"Configured in imagenet{resolution}"] == "the same").all()
    assert set(frame.loc["Epochs"].tolist()) == {"800", "the same"}
    assert frame.loc["Learning rate (peak)", "XS (paper)"] == "0.0008"
    assert frame.loc["MLP width", "L (paper)"] == "1280"
    assert frame.loc["Transformer blocks (encoder + decoder)", "B (paper)"] == "12+12"
    assert frame.loc["Params", "L (paper)"] == "478M"


def test_a_configuration_that_differs_from_the_paper_is_named(tmp_path):
    folder = tmp_path / "benchmarks" / "benchmark"
    folder.mkdir(parents=True)
    (tmp_path / "benchmarks" / "config.yaml").write_text((REPO / "benchmarks" / "config.yaml").read_text())
    (folder / "digits.yaml").write_text((REPO / "benchmarks" / "benchmark" / "digits.yaml").read_text())
    text = (REPO / "benchmarks" / "benchmark" / "imagenet256.yaml").read_text()
    changed = text.replace("batch: 2048", "batch: 1024").replace("width: 448", "width: 440")
    (folder / "imagenet256.yaml").write_text(changed)
    (tmp_path / "results" / "digits" / "records").mkdir(parents=True)
    frame = table6(load("digits", tmp_path)).frame.set_index("Setting")["Configured in imagenet256"]
    assert frame["Batch size"] == "; ".join(f"{s}: 1,024" for s in ("XS", "S", "B", "L", "H"))
    assert frame["Epochs"].startswith("XS: 400;") and frame["Transformer width"] == "XS: 440"
    assert frame["Params"].startswith("XS: ") and frame["MLP blocks"] == "the same"


def test_training_settings_below_come_from_the_records(root):
    below = table6(load("codes", root)).below
    frame = below.frame.set_index("Setting")
    assert below.name == "table6-settings"
    assert frame.loc["Mask schedule", "MASKGIT on codes"] == "cosine, t ≥ 0"
    assert frame.loc["Loss weight", "MDM on codes"] == "γ′/γ"
    assert frame.loc["Mask schedule", "Paper (XS / S / B / L / H)"] == "exp, t ≥ 0.2"
    assert frame.loc["Params", "Paper (XS / S / B / L / H)"] == "69M / 97M / 208M / 478M / 942M"
    assert frame.loc["Transformer width", "Paper (XS / S / B / L / H)"] == "448 / 512 / 768 / 1024 / 1280"


CONFIGS = [
    *PAPER_MODELS.values(),
    *(composed("codes").model_config(s) for s in ("maskgit",)),
    *(composed("ablations").model_config(s) for s in ("emigm", "fake_token")),
]


@pytest.mark.parametrize("cfg", CONFIGS, ids=range(len(CONFIGS)))
def test_parameters_in_closed_form_are_the_modules(cfg):
    with torch.device("meta"):
        assert parameters(cfg) == sum(p.numel() for p in EMIGM(cfg).parameters())


def test_the_papers_recipe_is_the_benchmarks():
    ours = composed("imagenet256").train_config("xs")
    machine = {"precision": PAPER_TRAIN.precision, "checkpoint_every": PAPER_TRAIN.checkpoint_every}
    assert dataclasses.replace(ours, **machine) == PAPER_TRAIN


def test_a_notebook_runs_on_the_family(root, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPO), prepend=os.pathsep)
    source, settings = REPO / "notebooks" / "figure7.ipynb", {"benchmark": "digits"}
    out = papermill.execute_notebook(source, tmp_path / "out.ipynb", settings, cwd=root, progress_bar=False)
    assert "guidance scale" in out.cells[-1].outputs[0].text
    assert (root / "results" / "digits" / "figure7.svg").is_file()
