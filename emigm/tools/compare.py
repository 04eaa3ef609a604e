"""`emigm compare`: this project's numbers against those that the paper reports, cell by cell."""

# ruff: noqa: RUF001
# × is meant: it is the paper's notation.
from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import norm
from tabulate import tabulate

from emigm.config.benchmark import Benchmark, is_random
from emigm.config.errors import ConfigError
from emigm.config.parsing import as_dict
from emigm.config.paths import results_folder
from emigm.config.schema import CompareConfig
from emigm.paper.reported import reported
from emigm.paper.settings import PAPER_MODELS, PAPER_TRAIN, PAPER_TRAINING_IMAGES, paper_sampling
from emigm.records.frame import Records, read_all
from emigm.report.tables import NONE, NOT_RUN, count, nfe_text, plural
from emigm.tools.artefacts import PUBLISHED, REFERENCES, fetched, recorded
from emigm.tools.doctor import how_to_run

WITHIN, OUTSIDE, INCOMPARABLE = "within", "OUTSIDE", "not comparable"
IMAGES = 50_000
SAMPLING = (
    "steps",
    "solver_steps",
    "cfg_scale",
    "cfg_interval",
    "schedule",
    "order",
    "solver",
    "temperature",
    "x0_clip",
)
"""What of the sampling settings must be the paper's."""
SPREAD = {"trained": 0.02, "released": 0.02 / 3.2}
"""Coefficient of variation of FID on ImageNet 256×256 over training runs, and over samples of one network (arXiv
2606.20536, of SiT networks: 1 to 2%, and 3.2 times smaller)."""
PRECISION = "float16"
"""Of the official evaluation, in which it samples and decodes."""
STAND_FOR_IT = ("tf32", "float32")
"""These round no coarser, so a cell is judged and a note says so; bfloat16 does, eight times."""
TRAINING = (
    "masking",
    "mask_group",
    "schedule",
    "t_min",
    "weight",
    "lr_schedule",
    "betas",
    "weight_decay",
    "grad_clip",
    "ema",
    "label_dropout",
    "diffusion_batch_mul",
)
"""What of the training settings must be the paper's; batch and learning rate may follow the machine."""


@dataclass(frozen=True)
class Cell:
    """One of the paper's models at one of its two budgets."""

    size: str
    budget: str
    reported: dict[str, str]
    """fid, nfe and params as the paper prints them."""
    fid: float | None
    """Ours: the mean over seeds; None: not run."""
    verdict: str
    tolerance: float
    """Greatest |difference| that counts as reproduced."""
    weights: str = "trained"
    """Or released."""
    reasons: tuple[str, ...] = ()
    """Why the cell is not comparable."""
    notes: tuple[str, ...] = ()
    """What of a comparable cell is not the paper's, and rounds no coarser."""

    @property
    def difference(self) -> float | None:
        """(Ours - reported) / reported."""
        return None if self.fid is None else self.fid / float(self.reported["fid"]) - 1


def compare(benchmark: Benchmark, allow_missing: bool = False) -> int:
    """Print the comparison; 0 where every cell that the paper reports is within the tolerance, else 1.

    Args:
        benchmark: its records are read from `results/`.
        allow_missing: cells that have not run do not count, as long as one is comparable.

    Raises:
        ConfigError: the paper reports nothing that the benchmark measures, or it has not run.
    """
    cfg = benchmark.compare
    if cfg is None:
        raise ConfigError(
            f"{benchmark.name} has no benchmark.compare: the paper reports no such benchmark; compare imagenet256 or "
            "imagenet512"
        )
    if not any((results_folder(benchmark.name) / "records").glob("*.json")):
        raise ConfigError(
            f"{benchmark.name}: not run yet, so there is nothing to compare; `emigm doctor {benchmark.name}` says what "
            f"it needs, and `{how_to_run(benchmark.name)}` runs it"
        )
    results = read_all(Path(), benchmark.name)
    cells = compare_cells(results, cfg)
    print(table(benchmark.name, results, cells, cfg))
    counts = {v: sum(c.verdict == v for c in cells) for v in (WITHIN, OUTSIDE, INCOMPARABLE, NOT_RUN)}
    print("\n" + ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n))
    problem = failure(counts, allow_missing)
    within = f"{plural(counts[WITHIN], 'FID')} within the tolerance of the paper's"
    print(f"not reproduced: {problem}" if problem else f"reproduced: {within}")
    return 1 if problem else 0


def failure(counts: dict[str, int], allow_missing: bool) -> str | None:
    """Why a comparison does not count as a reproduction; None: it does."""
    if counts[OUTSIDE]:
        return f"{plural(counts[OUTSIDE], 'FID')} outside the tolerance"
    if not counts[WITHIN]:
        return "nothing was comparable with the paper"
    if counts[INCOMPARABLE]:
        return f"{plural(counts[INCOMPARABLE], 'cell')} not comparable with the paper"
    if counts[NOT_RUN] and not allow_missing:
        return f"{plural(counts[NOT_RUN], 'cell')} not run (--allow-missing if that is meant)"
    return None


def chance_outside(cells: list[Cell]) -> float:
    """How often an exact reproduction has a judged cell outside its tolerance, both sides spreading as `SPREAD` says.

    Cells of released weights spread independently; those of one training go together.
    """
    judged = [c for c in cells if c.verdict in (WITHIN, OUTSIDE)]
    draws = {(c.size, c.weights == "trained" or c.budget): c for c in judged}.values()
    return 1 - math.prod(1 - 2 * norm.sf(c.tolerance / (math.sqrt(2) * SPREAD[c.weights])) for c in draws)


def compare_cells(results: Records, cfg: CompareConfig) -> list[Cell]:
    """A cell for every row of the paper's own models at the resolution."""
    lines = reported(cfg.resolution).query("family == 'Ours'")
    return [compare_cell(results, cfg, line._asdict()) for line in lines.itertuples(index=False)]


def compare_cell(results: Records, cfg: CompareConfig, line: dict[str, str]) -> Cell:
    """Find the cell's records and judge them."""
    size, budget = line["size"], line["budget"]
    fid = results.at(f"evaluate-{size}", "results", budget, "summary", "fid", "mean")
    weights = "released" if results.at(f"train-{size}", "weights") == "released" else "trained"
    tolerance = cfg.fid_tolerance_released if weights == "released" else cfg.fid_tolerance
    if fid is None:
        return Cell(size, budget, line, None, NOT_RUN, tolerance, weights)
    reasons = tuple(incomparable(results, cfg.resolution, size, budget, line))
    if reasons:
        return Cell(size, budget, line, fid, INCOMPARABLE, tolerance, weights, reasons)
    within = abs(fid / float(line["fid"]) - 1) <= tolerance
    notes = tuple(
        f"{what} in {precision}, which rounds no coarser than the paper's {PRECISION}"
        for what, precision in precisions_of(results, size, budget)
        if precision in STAND_FOR_IT
    )
    return Cell(size, budget, line, fid, WITHIN if within else OUTSIDE, tolerance, weights, notes=notes)


def incomparable(results: Records, resolution: int, size: str, budget: str, line: dict[str, str]) -> list[str]:
    """What of a measured cell differs from how the paper's number came about."""
    stages = {kind: f"{kind}-{size}" for kind in ("train", "evaluate")} | {"sample": f"sample-{size}-{budget}"}
    absent = [stage for stage in stages.values() if stage not in results]
    if absent:
        return [f"no record {stage}" for stage in absent]
    found = []
    if any(results.at(stage, "dry_run") for stage in stages.values()):
        found.append("dry run")
    if len({results.at(stage, "weights") for stage in stages.values()}) > 1:
        found.append("records of trained and of released weights")
    found += other_files(results, stages)
    found += training_differs(results, stages["train"])
    found += network_differs(results, resolution, size, line)
    found += sampling_differs(results, resolution, size, budget, line)
    found += evaluation_differs(results, resolution, stages["evaluate"])
    return found + files_differ(results, (*stages.values(), "extractor", "reference"))


def other_files(results: Records, stages: dict[str, str]) -> list[str]:
    """What a stage read that is not what the stage before wrote, by checksum: one of them has run again since."""
    found, before_it = [], {"sample": [stages["train"]], "evaluate": [stages["sample"], "extractor", "reference"]}
    for before, after in ((before, stages[kind]) for kind, those in before_it.items() for before in those):
        wrote, read = (results.at(stage, part) or {} for stage, part in ((before, "outputs"), (after, "inputs")))
        if any(read.get(file, checksum) != checksum for file, checksum in wrote.items()):
            found.append(f"{after} read other files than {before} has written since; run dvc repro to its end")
    return found


def training_differs(results: Records, stage: str) -> list[str]:
    """Released weights are the paper's; trained ones must have seen as many images by the same recipe."""
    weights = results.at(stage, "weights")
    if weights is None:
        return ["the records do not say whose weights"]
    images = results.at(stage, "scale", "images_trained_on")
    # Another batch leaves out another part of an epoch: that much is the paper's scale still.
    found = []
    if weights == "trained" and abs((images or 0) / PAPER_TRAINING_IMAGES - 1) > 0.01:
        found.append(f"trained on {images or 0:,} images, the paper on {PAPER_TRAINING_IMAGES:,}")
    if weights == "trained":
        found += _unlike("trained", results.at(stage, "settings", "train"), as_dict(PAPER_TRAIN), TRAINING)
    if weights == "released":
        token = results.at(stage, "settings", "source", "shared_token", "used")
        if token != "official":
            found.append(f"shared fake and mask token: {token}, the paper's evaluation computes with the official one")
    return found


def network_differs(results: Records, resolution: int, size: str, line: dict[str, str]) -> list[str]:
    """The architecture, and with it the number of parameters."""
    model = results.at(f"train-{size}", "settings", "model")
    parameters = results.at(f"train-{size}", "results", "parameters")
    found = [] if model == as_dict(PAPER_MODELS[resolution, size]) else ["another architecture"]
    # The paper rounds some counts and truncates others.
    if parameters is None or abs(parameters / 1e6 - float(line["params"].rstrip("M"))) >= 1:
        found.append(f"{count(parameters)} parameters")
    return found


def sampling_differs(results: Records, resolution: int, size: str, budget: str, line: dict[str, str]) -> list[str]:
    """Sampling settings, and with them the NFE as the paper rounds it."""
    stage = f"sample-{size}-{budget}"
    paper = as_dict(paper_sampling(resolution, size, int(budget)))
    found = _unlike("sampled", results.at(stage, "settings", "sample"), paper, SAMPLING)
    found += [
        f"{what} in {precision}, the paper in {PRECISION}, which {' and '.join(STAND_FOR_IT)} stand for"
        for what, precision in precisions_of(results, size, budget)
        if precision not in (PRECISION, *STAND_FOR_IT)
    ]
    nfe, share = results.at(stage, "results", "nfe"), line["nfe"].split("x")[1]
    digits = len(share.split(".")[1])
    if nfe is None or abs(nfe / int(budget) - float(share)) > 0.5 * 10**-digits:
        found.append(f"NFE {nfe}")
    return found


def precisions_of(results: Records, size: str, budget: str) -> list[tuple[str, str | None]]:
    """In which precision the network sampled and the autoencoder decoded."""
    stage, parts = f"sample-{size}-{budget}", {"sampled": "sample", "decoded": "autoencoder"}
    return [(what, results.at(stage, "settings", part, "precision")) for what, part in parts.items()]


def evaluation_differs(results: Records, resolution: int, stage: str) -> list[str]:
    """Extractor and reference statistics, by checksum where it is known, and the number of images."""
    extractor = results.at(stage, "settings", "extractor", "kind")
    weights = results.at(stage, "settings", "extractor_identity", "sha256")
    images = results.at(stage, "scale", "images") or results.at(stage, "settings", "images")
    found = [] if extractor == "inception" else [f"features of {extractor}"]
    if extractor == "inception" and weights != PUBLISHED["inception"]:
        found.append(f"the extractor's weights are not the published ones (SHA-256 {weights})")
    name, checksum = results.at(stage, "reference"), results.at(stage, "settings", "reference_source", "sha256")
    paper, known = REFERENCES[resolution], recorded(REFERENCES[resolution])
    if not (checksum == known if known else name == paper):
        found.append(f"reference: {name} (SHA-256 {checksum}), the paper's: {paper} (SHA-256 {known or 'unknown'})")
    if images is None or images < IMAGES:
        found.append(f"{images or 0:,} images, the paper {IMAGES:,}")
    return found


def files_differ(results: Records, stages: tuple[str, ...]) -> list[str]:
    """Which files of others that stages read are random or not the ones that `emigm fetch` got (checkpoints,
    autoencoder)."""
    known = fetched()
    read = {file: s for stage in stages for file, s in (results.at(stage, "inputs") or {}).items()}
    random = [f"{file} is random" for file in read if is_random(file)]
    return random + [
        f"{file} is another file than `emigm fetch` got"
        for file, checksum in read.items()
        if known.get(file, {}).get("sha256") not in (None, checksum)
    ]


def _unlike(what: str, ours: dict | None, paper: dict, keys: tuple[str, ...]) -> list[str]:
    """In which of the settings `keys` a run differs from the paper."""
    ours = ours or {}
    return [f"{what} with {k} {ours.get(k)}, the paper with {paper[k]}" for k in keys if ours.get(k) != paper[k]]


def table(name: str, results: Records, cells: list[Cell], cfg: CompareConfig) -> str:
    """The comparison as text, with the reasons below."""
    rows = []
    for c in cells:
        weights, stage = results.at(f"train-{c.size}", "weights"), f"sample-{c.size}-{c.budget}"
        steps, passes = results.at(stage, "settings", "sample", "steps"), results.at(stage, "results", "passes")
        rows.append(
            (
                c.reported["method"],
                c.reported["nfe"].replace("x", "×"),
                nfe_text(steps, passes),
                c.reported["params"],
                count(results.at(f"train-{c.size}", "results", "parameters")),
                weights or NOT_RUN,
                c.reported["fid"],
                NOT_RUN if c.fid is None else f"{c.fid:.2f}",
                NONE if c.difference is None else f"{100 * c.difference:+.1f}%",
                f"±{100 * c.tolerance:g}%",
                c.verdict,
            )
        )
    headers = ("model", "NFE (paper)", "NFE", "params (paper)", "params", "weights", "FID (paper)", "FID", "difference")
    text = tabulate(rows, (*headers, "tolerance", "verdict"), "simple", disable_numparse=True)
    reasons: dict[tuple[str, ...], list[str]] = {}
    for c in cells:
        if c.reasons:
            reasons.setdefault(c.reasons, []).append(f"{c.reported['method']} N={c.budget}")
    lines = [f"not comparable: {', '.join(names)}: {'; '.join(why)}" for why, names in reasons.items()]
    lines += sorted({f"note: {note}" for c in cells for note in c.notes})
    notes = [
        f"Tolerance, of the reported FID: {100 * cfg.fid_tolerance_released:g}% for released weights "
        f"(benchmark.compare.fid_tolerance_released), {100 * cfg.fid_tolerance:g}% for trained ones (fid_tolerance)."
    ]
    if judged := sum(c.verdict in (WITHIN, OUTSIDE) for c in cells):
        notes.append(
            f"Of exact reproductions {chance_outside(cells):.0%} would have one or more of {plural(judged, 'cell')} "
            "outside, by a spread measured on ImageNet 256×256 (benchmarks/imagenet.md)."
        )
    if recorded(REFERENCES[cfg.resolution]) is None:
        notes.append(f"Reference statistics: known by their name alone; `emigm fetch {name}` records their checksum.")
    mark = "DRY RUN: " if any(record["dry_run"] for record in results.values()) else ""
    title = f"{mark}{name} against the paper's Table {2 if cfg.resolution == 256 else 3}"
    return "\n".join([title, "", text, "", *notes, *lines])
