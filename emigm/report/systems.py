"""Table 1 of the paper: the four systems of its framework, as the records say they were set, and their scores."""

# ruff: noqa: RUF001
# γ, ′, ⌈, × and – are meant: they are the paper's notation.
from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from emigm.report.family import Member, member
from emigm.report.results import (
    METRICS,
    NONE,
    NOT_RUN,
    Results,
    count,
    extractor_text,
    fid_text,
    floors,
    floors_text,
    gate_note,
    gate_text,
    metric,
    nfe_text,
    plus_minus,
    spread_text,
    thousands,
)
from emigm.report.tables import NFE_NOTE, Table

SCORES = ("fid", "isc")


class System(NamedTuple):
    """A row of Table 1: what the paper says, and where this project's model is."""

    name: str
    masking: str
    weight: str
    conditional: str
    order: str
    """`sampling.order` of the system itself."""
    role: str
    size: str


SYSTEMS = (
    System("MaskGIT", "⌈Lγ⌉ tokens", "1", "categorical", "confidence", "systems", "maskgit"),
    System("MAR", "⌈Lγ⌉ tokens", "1", "diffusion", "exact", "training", "mar"),
    System("MDM", "each token with probability γ", "γ′/γ", "categorical", "binomial", "systems", "mdm"),
    System("eMIGM", "each token with probability γ", "1", "diffusion", "binomial", "training", "emigm"),
)
"""The paper's rows, with the family's role and size that stand for them."""
MASKINGS = {"exact_count": "⌈Lγ⌉ tokens", "independent": "each token with probability γ"}
WEIGHTS = {"one": "1", "elbo": "γ′/γ"}


def table1(results: Results) -> Table:
    """Table 1: masking, weight and conditional distribution of the four systems, as printed and as set here; below it
    their scores at every budget that was run."""
    members = {role: member(results, role) for role in dict.fromkeys(s.role for s in SYSTEMS)}
    marked = next((m.marked for m in members.values() if m.marked.dry_run), results)
    here = f"on {results.name}{' (DRY RUN)' if marked.dry_run else ''}"
    rows = [_settings_row(s, members[s.role].results, here) for s in SYSTEMS]
    notes = marked.notes(
        f"“(paper)”: as Table 1 of the paper has it. “{here}”: as the records name it. L tokens; γ: the mask schedule; "
        f"t ≥: time truncation in training. “{NOT_RUN}”: no record.",
        "The paper's MaskGIT and MDM have the codes of a VQ autoencoder; here codes are grey levels, one a pixel, so "
        "that these two have more tokens than MAR and eMIGM."
        if any(not m.reason for m in members.values())
        else "",
        *(f"{m.reason[0].upper()}{m.reason[1:]}." for m in members.values() if m.reason),
        *dict.fromkeys(gate_note(m.results) for m in members.values() if m.results.sizes),
    )
    title = marked.heading(f"Table 1: masked image models in one framework, as set and measured {here}")
    below = _scores(results, marked, members, here)
    return Table(results.folder, "table1", title, pd.DataFrame(rows), notes, below)


def _settings_row(system: System, ours: Results, here: str) -> dict[str, str]:
    stage = f"train-{system.size}"
    train, model = ours.get(stage, "settings", "train"), ours.get(stage, "settings", "model")
    cells = dict.fromkeys(("masking", "weight", "conditional", "schedule", "backbone", "params"), NOT_RUN)
    if train and model:
        cells = {
            "masking": MASKINGS[train["masking"]],
            "weight": WEIGHTS[train["weight"]],
            "conditional": _conditional(model),
            "schedule": f"{train['schedule']}, t ≥ {train['t_min']:g}",
            "backbone": "MAE trick" if model["mae"] else "no MAE trick",
            "params": count(ours.get(stage, "results", "parameters")),
        }
    return {
        "Method": system.name,
        "Masking (paper)": system.masking,
        f"Masking {here}": cells["masking"],
        "Weight (paper)": system.weight,
        f"Weight {here}": cells["weight"],
        "p(token) (paper)": system.conditional,
        f"p(token) {here}": cells["conditional"],
        f"Schedule {here}": cells["schedule"],
        f"Encoder {here}": cells["backbone"],
        f"Params {here}": cells["params"],
        f"Context gate {here}": gate_text(ours, system.size),
    }


def _conditional(model: dict) -> str:
    """The kind of head with what a token is and how many there are."""
    tokens = (model["grid"] // model["patch"]) ** 2
    what = f"{model['codebook']} codes" if model["codebook"] else f"{model['channels'] * model['patch'] ** 2} channels"
    return f"{model['conditional']} (L = {tokens}, {what})"


def _scores(results: Results, marked: Results, members: dict[str, Member], here: str) -> Table:
    """FID and IS of every system at every budget with records, with the floors as last rows."""
    shown = [m.results for m in members.values() if not m.reason]
    images = sorted({n for r in shown for s in r.sizes if (n := r.get(f"evaluate-{s}", "settings", "images"))})
    fid = f"FID{f'-{thousands(images[0])}' if len(images) == 1 else ''}"
    names = {"fid": f"{fid} {here}", "isc": f"{METRICS['isc']} {here}"}
    rows = []
    for system in SYSTEMS:
        ours = members[system.role].results
        found = [_score_row(system, ours, budget, names) for budget in _budgets(ours, system.size)]
        empty = {"Method": system.name} | dict.fromkeys(("N", "NFE", "Order", "Own order", *names.values()), NOT_RUN)
        rows += found or [empty | {"Context gate": gate_text(ours, system.size)}]
    for ours in shown[:1]:
        rows += [
            {"Method": f"{label} ({f['images']:,})"} | {names[k]: plus_minus(f[k]) for k in SCORES if k in f}
            for label, f in floors(ours).items()
        ]
    frame = pd.DataFrame(rows).fillna(NONE)
    notes = marked.notes(
        "Own order: whether tokens are revealed as the system itself does it; other rows show a model under another "
        f"system's order. At N = 1 all tokens come at once. “{NONE}”: does not apply or is not measured.",
        _extractors_note(shown),
        *dict.fromkeys(text(r) for text in (spread_text, floors_text) for r in shown),
        *(fid_text(r) for r in (shown[:1] if len(images) == 1 else shown)),
        NFE_NOTE,
    )
    return Table(results.folder, "table1-scores", marked.heading(f"Scores of the systems {here}"), frame, notes)


def _score_row(system: System, ours: Results, budget: str, names: dict[str, str]) -> dict[str, str]:
    sample = ours.get(f"sample-{system.size}-{budget}", "settings", "sample")
    summary = ours.get(f"evaluate-{system.size}", "results", budget, "summary")
    steps, order = sample["steps"], sample["order"]
    guidance = "" if sample["cfg_scale"] == 1 else f", guidance {sample['cfg_scale']:g}"
    row = {
        "Method": system.name,
        "N": str(steps),
        "NFE": nfe_text(ours, system.size, budget),
        "Order": ("at once" if steps == 1 else f"{order}, {sample['schedule']}") + guidance,
        "Own order": NONE if steps == 1 else "yes" if order == system.order else "no",
    }
    row |= {names[key]: metric(summary, key) for key in SCORES}
    return row | {"Context gate": gate_text(ours, system.size)}


def _budgets(ours: Results, size: str) -> list[str]:
    """Budgets that a size was sampled at, by N."""
    found = {b: ours.get(f"sample-{size}-{b}", "settings", "sample", "steps") for b in ours.budgets}
    return sorted((b for b, n in found.items() if n is not None), key=lambda b: (found[b], b))


def _extractors_note(shown: list[Results]) -> str:
    """Whether all rows were scored with the same features, as the records of the evaluations say."""
    stages = [(r, f"evaluate-{s.size}") for r in shown for s in SYSTEMS]
    found = {str(r.get(stage, "settings", "extractor_identity")) for r, stage in stages if r.get(stage) is not None}
    if not found:
        return ""
    names = " and ".join(dict.fromkeys(extractor_text(r) for r in shown))
    if len(found) == 1:
        return f"All rows are scored with the same extractor ({names}; checked by its checksum)."
    return f"NOT COMPARABLE: the rows are scored with {len(found)} different extractors ({names})."
