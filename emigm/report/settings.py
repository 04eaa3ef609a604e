"""Tables 5, 6 and 7 of the paper: licences and training settings, beside what this project's configuration says."""

# ruff: noqa: RUF001
# β, × and – are meant: they are the paper's notation.
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from emigm.config.benchmark import Benchmark
from emigm.config.compose import compose_benchmark
from emigm.config.parsing import parse
from emigm.config.schema import ModelConfig, TrainConfig
from emigm.flops import FREQUENCIES
from emigm.paper.settings import PAPER_MODELS, PAPER_TRAINING_IMAGES
from emigm.report.results import NONE, NOT_RUN, Results, count, reported
from emigm.report.tables import Table

PAPER_BENCHMARKS = {256: "imagenet256", 512: "imagenet512"}
PAPER_TABLES = {256: "table6", 512: "table7"}
EPOCHS, BATCH = 800, 2048
PAPER_TRAIN = TrainConfig(
    steps=PAPER_TRAINING_IMAGES // BATCH,
    batch=BATCH,
    lr=1e-4 * BATCH / 256,
    warmup_steps=PAPER_TRAINING_IMAGES // BATCH // 8,  # 100 of 800 epochs
)
"""The recipe of all nine models (Tables 6 and 7)."""


class Source(NamedTuple):
    """A row of Table 5."""

    method: str
    link: str
    licence: str
    here: Callable[[Benchmark], str]
    """What a benchmark takes from it; empty: nothing."""


def _autoencoder(kind: str, reader: str) -> Callable[[Benchmark], str]:
    def here(benchmark: Benchmark) -> str:
        cfg = benchmark.autoencoder
        text = f"weights of the autoencoder (`{cfg.weights}`, brought by the user), read by {reader}"
        return text if cfg.kind == kind else ""

    return here


def _solver(benchmark: Benchmark) -> str:
    solvers = {benchmark.sample_config(s, b).solver for s in benchmark.sizes for b in benchmark.budgets}
    return "the sampler, written anew (`emigm/model/diffusion.py`)" if "dpm-solver" in solvers else ""


def _checkpoints(benchmark: Benchmark) -> str:
    return f"checkpoints (`{benchmark.released.repository}`)" if benchmark.weights == "released" else ""


SOURCES = (
    Source("MAR", "https://github.com/LTH14/mar", "MIT License", _autoencoder("kl16", "diffusers")),
    Source("DPM-Solver", "https://github.com/LuChengTHU/dpm-solver", "MIT License", _solver),
    Source(
        "DC-AE",
        "https://github.com/mit-han-lab/efficientvit",
        "Apache-2.0 license",
        _autoencoder("dcae", "diffusers"),
    ),
)
"""Table 5 as printed, and what this project's benchmarks take from each."""
OFFICIAL = Source("eMIGM (not in the paper's table)", "https://github.com/ML-GSAI/eMIGM", "MIT License", _checkpoints)


class Setting(NamedTuple):
    """A row of Tables 6 and 7, or of the settings shown below them."""

    name: str
    of: Callable[[ModelConfig, TrainConfig], str]
    printed: bool = False
    """Whether the paper's tables have it."""


MODEL_SETTINGS = (
    Setting("Tokens (L × C)", lambda m, _: f"{m.tokens} × {m.token_channels}"),
    Setting("Transformer blocks (encoder + decoder)", lambda m, _: f"{m.encoder_blocks}+{m.decoder_blocks}", True),
    Setting("Transformer width", lambda m, _: str(m.width), True),
    Setting("Attention heads", lambda m, _: str(m.heads)),
    Setting("MLP blocks", lambda m, _: str(m.head_blocks), True),
    Setting("MLP width", lambda m, _: str(m.head_width), True),
    Setting("Params", lambda m, _: count(parameters(m)), True),
)
TRAIN_SETTINGS = (
    Setting("Training images seen", lambda _, t: count(t.steps * t.batch)),
    Setting("Steps", lambda _, t: f"{t.steps:,}"),
    Setting("Learning rate (peak)", lambda _, t: f"{t.lr:g}", True),
    Setting("Learning-rate schedule", lambda _, t: f"{t.lr_schedule}, warm-up {t.warmup_steps:,} steps"),
    Setting("Batch size", lambda _, t: f"{t.batch:,}", True),
    Setting("Adam β1", lambda _, t: f"{t.betas[0]:g}", True),
    Setting("Adam β2", lambda _, t: f"{t.betas[1]:g}", True),
    Setting("Weight decay", lambda _, t: f"{t.weight_decay:g}"),
    Setting("EMA", lambda _, t: f"{t.ema:g}"),
    Setting("Mask schedule", lambda _, t: f"{t.schedule}, t ≥ {t.t_min:g}"),
    Setting("Loss weight", lambda _, t: {"one": "1", "elbo": "γ′/γ"}[t.weight]),
    Setting("Diffusion times of a token", lambda _, t: str(t.diffusion_batch_mul)),
)
EPOCHS_SETTING = Setting("Epochs", lambda _, t: f"{EPOCHS * t.steps * t.batch / PAPER_TRAINING_IMAGES:g}", True)
"""Of ImageNet, so only in the paper's own tables."""


def table5(results: Results) -> Table:
    """Table 5: links and licences as the paper prints them, and what this project's benchmarks take from each."""
    names = dict.fromkeys((results.name, *PAPER_BENCHMARKS.values()))
    folder = results.root / "benchmarks"
    known = [n for n in names if n in PAPER_BENCHMARKS.values() or (folder / "benchmark" / f"{n}.yaml").is_file()]
    composed = [compose_benchmark(name, folder=folder) for name in known]
    rows = [
        {
            "Method": source.method,
            "Link": source.link,
            "License": source.licence,
            "Used here": "; ".join(dict.fromkeys(text for b in composed if (text := source.here(b)))) or NONE,
            "In the benchmarks": ", ".join(b.name for b in composed if source.here(b)) or NONE,
        }
        for source in (*SOURCES, OFFICIAL)
    ]
    notes = results.notes(
        "Method, link and license: Table 5 of the paper; the last row is the paper's own code. The other columns come "
        f"from the composed benchmarks {', '.join(known)}. “{NONE}”: none of them uses it.",
        "No code of these projects is in this repository. Their licences hold for what a user downloads from them.",
    )
    title = results.heading("Table 5: code links and licenses")
    return Table(results.folder, "table5", title, pd.DataFrame(rows), notes)


def table6(results: Results) -> Table:
    """Table 6: training configurations on ImageNet 256×256, and where this project's differ; below it those of the
    benchmark."""
    return _configurations(results, 256)


def table7(results: Results) -> Table:
    """Table 7: training configurations on ImageNet 512×512, and where this project's differ; below it those of the
    benchmark."""
    return _configurations(results, 512)


def parameters(cfg: ModelConfig) -> int:
    """Parameters of an architecture, in closed form."""
    d, w, c, hidden = cfg.width, cfg.head_width, cfg.token_channels, int(cfg.width * cfg.mlp_ratio)
    block = 4 * d + _linear(d, 3 * d) + _linear(d, d) + _linear(d, hidden) + _linear(hidden, d)
    embeddings = (cfg.classes + 1 + (not cfg.cfg_with_mask)) * d  # classes, the fake one, and the mask token
    positions = (2 * (cfg.buffer + cfg.tokens) + cfg.tokens) * d
    tokens = _linear(c, d) if cfg.codebook is None else cfg.codebook * d
    backbone = embeddings + positions + tokens + _linear(d, d) + 6 * d
    backbone += (cfg.encoder_blocks + cfg.decoder_blocks) * block
    residual = 2 * w + 2 * _linear(w, w)
    if cfg.codebook is not None:
        return backbone + _linear(d, w) + cfg.head_blocks * residual + 2 * w + _linear(w, cfg.codebook)
    residual += _linear(w, 3 * w)
    head = _linear(FREQUENCIES, w) + _linear(w, w) + _linear(d, w) + _linear(c, w)  # time, condition, token
    return backbone + head + cfg.head_blocks * residual + _linear(w, 2 * w) + _linear(w, 2 * c)


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _configurations(results: Results, resolution: int) -> Table:
    name, number = PAPER_BENCHMARKS[resolution], PAPER_TABLES[resolution].removeprefix("table")
    ours = compose_benchmark(name, folder=results.root / "benchmarks")
    models = {size: model for (r, size), model in PAPER_MODELS.items() if r == resolution}
    printed_params = _printed_parameters(resolution)
    rows = []
    for setting in (*MODEL_SETTINGS, EPOCHS_SETTING, *TRAIN_SETTINGS):
        if not setting.printed:
            continue
        paper = {size: setting.of(model, PAPER_TRAIN) for size, model in models.items()}
        here = {s: setting.of(ours.model_config(s), ours.train_config(s)) for s in models if s in ours.ladder}
        differs = [f"{s.upper()}: {here.get(s, NOT_RUN)}" for s in models if here.get(s) != paper[s]]
        shown = printed_params if setting.name == "Params" else paper
        row = {"Setting": setting.name} | {f"{s.upper()} (paper)": shown[s] for s in models}
        rows.append(row | {f"Configured in {name}": "; ".join(differs) or "the same"})
    title = f"Table {number}: training configurations, ImageNet {resolution}×{resolution}"
    notes = results.notes(
        f"“(paper)”: Table {number} of the paper. Last column: `benchmarks/benchmark/{name}.yaml`, composed. MLP: the "
        "head. Params: as printed; “the same” there compares the architecture's exact number.",
        f"{name} is configured to run with {ours.weights} weights"
        + ("; its training settings hold with `-S benchmark.weights=trained`." if ours.weights == "released" else "."),
        "The learning rate is the paper's 1e-4 × batch / 256. The official scripts of XS and S name a batch of 1,024, "
        "and so half the rate (benchmarks/imagenet.md)."
        if resolution == 256
        else "The learning rate is the paper's 1e-4 × batch / 256.",
    )
    below = _settings_table(results, resolution, models)
    return Table(results.folder, f"table{number}", results.heading(title), pd.DataFrame(rows), notes, below)


def _settings_table(results: Results, resolution: int, models: dict[str, ModelConfig]) -> Table:
    """What every size of the benchmark was trained with, as its records say, beside the paper's."""
    number = PAPER_TABLES[resolution].removeprefix("table")
    paper = " / ".join(s.upper() for s in models)
    printed, trained = _printed_parameters(resolution), {size: _recorded(results, size) for size in results.sizes}
    rows = []
    for setting in (*MODEL_SETTINGS, *TRAIN_SETTINGS):
        values = [printed[s] if setting.name == "Params" else setting.of(m, PAPER_TRAIN) for s, m in models.items()]
        row = {"Setting": setting.name, f"Paper ({paper})": " / ".join(values if len(set(values)) > 1 else values[:1])}
        rows.append(row | {f"{s.upper()} on {results.label}": _value(setting, *t) for s, t in trained.items()})
    notes = results.notes(
        f"“on {results.label}”: from the training records. “{NOT_RUN}”: no record. “{NONE}”: released weights; their "
        "authors trained them.",
        "" if trained else f"No size of {results.name} has a record.",
    )
    title = results.heading(f"Training configurations on {results.name}")
    return Table(results.folder, f"table{number}-settings", title, pd.DataFrame(rows), notes)


def _recorded(results: Results, size: str) -> tuple[ModelConfig | None, TrainConfig | None]:
    """Model and training settings of a size's record; None: not in it."""
    found = results.get(f"train-{size}", "settings") or {}
    where = f"results/{results.name}/records/train-{size}.json: settings"
    model, train = found.get("model"), found.get("train")
    return (
        None if model is None else parse(ModelConfig, model, f"{where}.model"),
        None if train is None else parse(TrainConfig, train, f"{where}.train"),
    )


def _value(setting: Setting, model: ModelConfig | None, train: TrainConfig | None) -> str:
    if model is None:
        return NOT_RUN
    if setting in TRAIN_SETTINGS and train is None:
        return NONE
    return setting.of(model, train)


def _printed_parameters(resolution: int) -> dict[str, str]:
    """Size -> parameters as Tables 2 and 3 print them."""
    rows = reported().query("family == 'Ours' and resolution == @r", local_dict={"r": str(resolution)})
    return {row.method.split("-")[1].lower(): row.params for row in rows.itertuples()}
