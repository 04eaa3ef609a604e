"""`emigm verify` on a tiny benchmark: results as the stages wrote them hold, every tampering is refused by name."""

import itertools
import json
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from dvc.repo import Repo
from test_evaluation import TREE

from emigm.cli import main
from emigm.config.benchmark import load_benchmark
from emigm.config.compose import write_composed
from emigm.config.errors import ConfigError
from emigm.records.record import provenance
from emigm.verify.verdict import as_json, holds, log, report, verdict
from emigm.verify.verify import verify

ROOT = Path(__file__).parents[1]
RECORDS = "results/tiny/records"
SOURCE = {k: v for k, v in TREE.items() if k not in ("name", "images_of")} | {
    "data": {"dataset": "digits", "holdout": 0.2, "flips": False},
    "evaluation": {
        **{"images": 24, "seeds": [0, 1], "chunk": 12, "cas_steps": 20},
        **{"reference": None, "clean_fid": False},
    },
    "released": None,
    "run": {"device": "cpu"},
    "gate": {"visible": [0, 8], "images": 32, "repeats": 1, "on_failure": "mark"},
    "weights": "trained",
    "notebooks": ["table2"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkout in which all stages of `tiny` have run, committed; files stand for code, the table and the page."""
    from emigm.stages.encode import encode
    from emigm.stages.evaluate import evaluate
    from emigm.stages.extractor import make_extractor
    from emigm.stages.prepare import prepare
    from emigm.stages.reference import make_reference
    from emigm.stages.sample import sample
    from emigm.stages.summary import summary
    from emigm.stages.train import train_size

    folder, here = tmp_path_factory.mktemp("made"), Path.cwd()
    os.chdir(folder)
    try:
        shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
        shutil.copy(ROOT / ".dvcignore", ".dvcignore")
        for name in (".dvc", "benchmarks/tiny"):
            Path(name).mkdir(parents=True)
        Path(".dvc/config").touch()
        Path("benchmarks/tiny/benchmark.yaml").write_text(yaml.safe_dump(SOURCE))
        write_composed()
        benchmark = load_benchmark("benchmarks/tiny/params.yaml")
        for stage in (prepare, make_extractor, encode, make_reference):
            stage(benchmark)
        train_size(benchmark, "xs")
        for budget in benchmark.budgets:
            sample(benchmark, "xs", budget)
        evaluate(benchmark, "xs")
        summary(benchmark)
        write("results/tiny/notebooks/table2/table2.csv", "size,FID\nxs,81.3\n")
        write("results/tiny/notebooks/table2/table2.ipynb", "{}")
        write("results/tiny/README.md", "# Tiny\n")
        accept_all()
        write(".gitignore", "/data/\n/models/\n/samples/\n/.state/\n/.dvc/tmp/\n/.dvc/cache/\n")
        git("init", "--quiet")
        commit_all()
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def workspace(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def theirs(workspace, tmp_path):
    return Path(shutil.copytree("results", tmp_path / "theirs" / "results"))


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def commit_all() -> str:
    git("add", "--all")
    git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--allow-empty", "-m", "results")
    return git("rev-parse", "HEAD")


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def accept_all(name: str = "tiny") -> None:
    """`dvc commit`: every stage has run with what lies here; code that does not is a file of one letter."""
    with Repo(config={"core": {"no_scm": True}}) as repo, repo.lock:
        stages = repo.stage.load_all(f"benchmarks/{name}/dvc.yaml")
        for path in (Path(dep.fs_path).relative_to(Path.cwd()) for stage in stages for dep in stage.deps):
            if path.parts[0] not in ("data", "models", "samples", "results") and not path.exists():
                write(str(path if path.suffix else path / "code.py"), "x")
        for stage in stages:
            stage.save(allow_missing=True)
            stage.dump(update_pipeline=False)


def edit(stage: str, change, results: Path = Path("results")) -> None:
    """Change a record by hand."""
    path = results / "tiny" / "records" / f"{stage}.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record, indent=2) + "\n")


def relock(change) -> None:
    """Change what dvc.lock says of the stages."""
    path = Path("benchmarks/tiny/dvc.lock")
    lock = yaml.safe_load(path.read_text())
    change(lock["stages"])
    path.write_text(yaml.safe_dump(lock))


def rescore(record, change: float, other: float | None = None) -> None:
    """Another FID in every run; with odd sampling seeds changed by `other`."""
    for scored in record["results"].values():
        for run, curve in zip(scored["runs"], scored["fid_by_images"], strict=True):
            run["fid"] += other if other is not None and run["train_seed"] % 2 else change
            curve["fid"]["24"] = run["fid"]


def rerun(*stages: str) -> None:
    """As if stages had run again with the same outcome."""
    for stage in stages:
        edit(stage, lambda r: r["provenance"].update(commit="c0de"))
    accept_all()


def problems() -> str:
    return "\n".join(p for one in verify() for p in one.findings.problems)


# Whole


def test_results_as_the_stages_wrote_them_are_whole(workspace, capsys):
    assert main(["verify"]) == 0
    said = capsys.readouterr().out
    assert "tiny\n  whole: 8 records" in said
    assert said.splitlines()[-1].startswith("unchanged: the 8 records are those of HEAD, and whole; no stage has run")


def flip(path) -> None:
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2] ^= 1
    Path(path).write_bytes(content)


ACCEPTED = {
    "settings of another commit": (
        lambda: edit("train-xs", lambda r: r["settings"]["train"].update(steps=3)),
        "train-xs.json: made with settings.train.steps = 3, but the benchmark says \\d+",
    ),
    "settings changed since": (
        lambda: swap_text("benchmarks/tiny/params.yaml", "lr: 0.001\n    seeds", "lr: 0.002\n    seeds"),
        "train-xs.json: made with settings.train.lr = 0.001, but the benchmark says 0.002",
    ),
    "another reference": (
        lambda: edit("evaluate-xs", lambda r: r["inputs"].update({"data/tiny/reference.npz": "0" * 64})),
        "evaluate-xs.json: read another data/tiny/reference.npz than reference.json wrote",
    ),
    "another record's name": (
        lambda: shutil.copy(f"{RECORDS}/sample-xs-4.json", f"{RECORDS}/sample-xs-16.json"),
        "sample-xs-16.json: is the record of tiny sample-xs-4",
    ),
    "a truncated record": (
        lambda: swap_text(f"{RECORDS}/evaluate-xs.json", "}\n", ""),
        f"{RECORDS}/evaluate-xs.json: not valid JSON",
    ),
    "a record of another schema": (
        lambda: edit("encode", lambda r: r.update(schema=0)),
        "encode.json: record schema 0",
    ),
    "a number that is none": (
        lambda: edit("evaluate-xs", lambda r: r["results"]["4"]["runs"][0].update(fid=float("nan"))),
        "evaluate-xs.json: lacks what its stage writes .holds NaN",
    ),
    "a file that no stage makes": (
        lambda: write("results/tiny/best.csv", "FID\n1.9\n"),
        "results/tiny/best.csv: no stage makes it",
    ),
}
"""Name -> (what is done, what is said): refused even where it is accepted by `dvc commit`."""
IN_LOCK = {
    "a FID in a record": (
        lambda: edit("evaluate-xs", lambda r: rescore(r, -1.0)),
        f"{RECORDS}/evaluate-xs.json: is not what stage evaluate@xs wrote, which .*dvc.lock lists; run dvc repro",
    ),
    "a table's cell": (
        lambda: write("results/tiny/notebooks/table2/table2.csv", "size,FID\nxs,1.3\n"),
        "results/tiny/notebooks/table2: is not what stage notebook@table2 wrote",
    ),
    "a missing record": (lambda: Path(f"{RECORDS}/reference.json").unlink(), "records/reference.json: missing"),
    "weights": (
        lambda: flip("models/tiny/xs/seed0/model.safetensors"),
        "models/tiny/xs: is not what stage train@xs wrote",
    ),
    "code": (lambda: write("emigm/train.py", "y"), "emigm/train.py: has changed since train@xs ran; run dvc repro"),
    "code that is gone": (lambda: Path("emigm/train.py").unlink(), "emigm/train.py: has changed since train@xs ran"),
    "a parameter": (
        lambda: swap_text("benchmarks/tiny/params.yaml", "cas_steps: 20", "cas_steps: 19"),
        "dvc.lock: stage reference ran with another benchmark.evaluation; run dvc repro",
    ),
    "a stage that has not run": (
        lambda: relock(lambda stages: stages.pop("sample@xs-16")),
        "benchmarks/tiny/dvc.lock: has no stage sample@xs-16: it has not run",
    ),
    "another command": (
        lambda: relock(lambda stages: stages["train@xs"].update(cmd="python")),
        "stage train@xs ran another command than dvc.yaml gives it; run dvc repro",
    ),
    "a dependency that was not there": (
        lambda: relock(lambda stages: stages["train@xs"]["deps"].pop()),
        ": is a dependency without which train@xs ran; run dvc repro",
    ),
    "an output that was not there": (
        lambda: relock(lambda stages: stages["train@xs"]["outs"].pop()),
        "stage train@xs lists no .*; run dvc repro",
    ),
    "another model than was sampled, without the models": (
        lambda: (
            shutil.rmtree("models")
            or relock(lambda stages: stages["train@xs"]["outs"][0].update(md5="0" * 32 + ".dir"))
        ),
        "stage sample@xs-4 read another models/tiny/xs than stage train@xs made",
    ),
}
"""What contradicts nothing but dvc.lock."""


def swap_text(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text[: text.rindex(old)] + new + text[text.rindex(old) + len(old) :])


@pytest.mark.parametrize("name", [*ACCEPTED, *IN_LOCK])
def test_what_is_tampered_with_is_refused_by_name(workspace, name, capsys):
    tamper, said = (ACCEPTED | IN_LOCK)[name]
    tamper()
    if name in ACCEPTED:
        accept_all()
    assert re.search(said, problems()), problems()
    assert main(["verify", "tiny"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("not whole: ")


def test_a_flipped_bit_in_any_tracked_file_is_refused(workspace):
    """Also where its size and time of change are those that DVC knows."""
    for path in sorted(p for p in Path("results").rglob("*") if p.is_file()):
        whole, times = path.read_bytes(), path.stat()
        flip(path)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert not holds(verify()), path
        path.write_bytes(whole)
    assert holds(verify())


def leaves(tree, path=()):
    """Paths of everything in a JSON tree but the root."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from leaves(value, (*path, key))


PARTS = ("results", "settings", "inputs", "outputs", "stage")


def test_any_part_of_any_record_dropped_or_replaced_is_refused_and_never_a_traceback(workspace):
    rng = random.Random(0)
    for path, part in itertools.product(sorted(Path(RECORDS).glob("*.json")), PARTS):
        text = path.read_text()
        node = record = json.loads(text)
        if not (places := [p for p in leaves(record) if p[0] == part]):
            continue
        *above, last = place = rng.choice(places)
        for key in above:
            node = node[key]
        values = [None, "x", [], {}, -1.5, [[1]], {"values": [None]}, {"values": [], "mean": 1}]
        node[last] = rng.choice([v for v in values if v != node[last]])
        path.write_text(json.dumps(record, indent=2) + "\n")
        found = verify(against="HEAD")
        assert not holds(found) and path.name in "\n".join(found[0].findings.problems), (path, place, node[last])
        as_json(found), report(found)
        path.write_text(text)


@pytest.mark.parametrize("text", ["[]", "stages: []", "stages: {encode: {outs: [x]}}", "\x00"])
def test_a_damaged_lock_file_is_one_line(workspace, text, capsys):
    write("benchmarks/tiny/dvc.lock", text)
    assert main(["verify"]) == 1
    out, err = capsys.readouterr()
    assert "dvc.lock" in out.splitlines()[-1] if out else len(err.splitlines()) == 1 and "dvc.lock" in err


def test_what_is_not_here_is_said_to_be_unchecked(workspace):
    for folder in ("data", "models", "samples"):
        shutil.rmtree(folder)
    found = verify()
    assert holds(found) and "models/tiny/xs" in found[0].findings.unchecked
    assert re.search("not here, so not looked at: .* of data/tiny, models/tiny, samples/tiny", report(found))


def test_large_data_are_read_with_deep_alone(workspace, monkeypatch):
    monkeypatch.setattr("emigm.verify.pipeline.LARGEST", 1)
    flip("samples/tiny/xs/4/train0-seed1/000012-000024.npz")
    assert holds(verify()) and not holds(verify(deep=True))
    assert "samples/tiny/xs/4 (large: with --deep)" in verify()[0].findings.unchecked


def test_a_folder_of_results_without_a_benchmark_is_named(workspace):
    write("results/digits/table.csv", "1\n")
    write("results/best.csv", "1\n")
    assert all(f"results/{name}: no stage makes it" in problems() for name in ("digits/table.csv", "best.csv"))
    assert holds(verify(["tiny"]))


def test_a_pipeline_without_a_benchmark_is_verified_by_its_lock_file(workspace):
    """Such as that of the tables over all benchmarks, which reads their records."""
    stage = {"wdir": "../..", "matrix": {"notebook": "${notebooks}"}, "cmd": "x", "deps": [RECORDS]}
    stage["outs"] = [{"results/evidence/notebooks/${item.notebook}": {"cache": False}}]
    chain = {"vars": [{"notebooks": ["claims"]}], "stages": {"notebook": stage}}
    write("benchmarks/evidence/dvc.yaml", yaml.safe_dump(chain))
    write("results/evidence/notebooks/claims/claims.csv", "ID,Verdict\n2a,holds\n")
    accept_all("evidence")
    found = verify()
    assert [one.name for one in found] == ["evidence", "tiny"] and holds(found)
    assert verdict(verify(["evidence"])).startswith("whole: 2 files and folders as they were written")
    edit("encode", lambda r: r["provenance"].update(date="2020-01-01"))
    assert f"{RECORDS}: has changed since notebook@claims ran" in verify(["evidence"])[0].findings.problems[0]


# Reproduced


def test_another_machine_s_results_within_the_margin_are_reproduced(workspace, theirs):
    edit("evaluate-xs", lambda r: rescore(r, 0.01), theirs)
    found = verify(against=str(theirs))
    assert holds(found), report(found)
    said = r"reproduced: (\d+) of (\d+) cells made again, (\d+) identical, (\d+) within their margin"
    again, cells, identical, within = map(int, re.fullmatch(said, verdict(found)).groups())
    assert again == identical + within < cells and within == 2
    assert found[0].again == {"evaluate-xs"} and "reproduced evaluate-xs 4 fid: " in report(found)
    assert verify(against=str(theirs.parent))[0].comparison == found[0].comparison


def test_cells_of_stages_that_did_not_run_are_not_counted(workspace):
    rerun("encode")
    tree = as_json(verify())
    cells = tree["benchmarks"]["tiny"]["cells"]
    again = [cell for cell in cells if cell["cell"].startswith("encode ")]
    said = f"reproduced: {len(again)} of {len(cells)} cells made again, {len(again)} identical"
    assert tree["verdict"] == said and [c for c in cells if c["made_again"]] == again


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        (lambda r: rescore(r, 80.0), "differs", r"differs: \d metrics?, the first tiny evaluate (clean_)?fid"),
        (
            lambda r: rescore(r, 500.0, -500.0),
            "undecided",
            "undecided: 1 metric shown neither to be the same nor to differ, the first tiny evaluate fid: mean diff",
        ),
    ],
)
def test_what_differs_or_scatters_too_much_to_tell_is_named(workspace, theirs, capsys, change, status, said):
    edit("evaluate-xs", change, theirs)
    assert main(["verify", "--against", str(theirs), "--json", "found.json"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match(said, last)
    tree = json.loads(Path("found.json").read_text())
    assert tree["holds"] is False and tree["verdict"] == last and tree["against"] == str(theirs)
    assert status in {metric["status"] for metric in tree["benchmarks"]["tiny"]["metrics"]}
    cell = next(c for c in tree["benchmarks"]["tiny"]["cells"] if c["cell"] == "evaluate-xs 4 fid")
    assert (abs(cell["ours"] - cell["theirs"]) > cell["margin"]) == (cell["status"] == "undecided")


def test_a_stranger_s_damaged_results_are_refused(workspace, theirs):
    (theirs / "tiny/records/encode.json").write_text("{")
    found = verify(against=str(theirs))
    assert not holds(found) and f"{theirs}: {RECORDS}/encode.json: not valid JSON" in found[0].findings.problems[0]


def test_results_are_compared_with_a_revision_or_an_experiment(workspace):
    edit("evaluate-xs", lambda r: rescore(r, 0.01))
    accept_all()
    git("update-ref", f"refs/exps/ab/{'c' * 38}/warm-sloe", git("rev-parse", "HEAD"))
    for name in ("HEAD", "warm-sloe"):
        (one,) = verify(against=name)
        assert one.again == {"evaluate-xs"} and one.same
    git("update-ref", f"refs/exps/ab/{'d' * 38}/warm-sloe", git("rev-parse", "HEAD"))
    with pytest.raises(ConfigError, match="warm-sloe: 2 DVC experiments have this name"):
        verify(against="warm-sloe")
    with pytest.raises(ConfigError, match="v9: neither a folder nor a revision nor a DVC experiment"):
        verify(against="v9")


def test_results_that_no_revision_has_are_whole_but_not_compared(workspace):
    git("rm", "-r", "--quiet", "--cached", "results")
    git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "no results")
    found = verify()
    assert holds(found) and found[0].comparison is None
    assert re.fullmatch(r"whole: \d+ files .*; HEAD has no records of tiny to compare with", verdict(found))
    with pytest.raises(ConfigError, match="HEAD: has no results of tiny"):
        verify(against="HEAD")


def test_records_are_added_up_over_the_benchmarks_that_are_compared_alone(workspace):
    shutil.copytree("benchmarks/tiny", "benchmarks/other")
    write_composed()
    shutil.copytree("results/tiny", "results/other")
    for path in Path("results/other/records").glob("*.json"):
        path.write_text(path.read_text().replace('"tiny"', '"other"').replace("/tiny/", "/other/"))
    for folder in ("data", "models", "samples"):
        shutil.copytree(f"{folder}/tiny", f"{folder}/other")
    accept_all("other")
    found = verify(["tiny", "other"])
    said = "unchanged: the 8 records are those of HEAD, and whole; no stage has run again; HEAD has no records of other"
    assert verdict(found).startswith(said), report(found)


def test_claims_whose_verdict_changed_are_named_and_the_contrary_counts(workspace, theirs):
    verdicts = {"2a": "holds", "2b": "holds", "3a": "not decided"}
    for folder, changed in ((Path("results"), {}), (theirs, {"2b": "not decided"})):
        path = folder / "tiny" / "notebooks" / "table2" / "claims.csv"
        path.write_text("ID,Claim,Verdict\n" + "".join(f"{k},x,{v}\n" for k, v in (verdicts | changed).items()))
    accept_all()
    found = verify(against=str(theirs))
    assert found[0].claims == ["claim 2b: holds, was not decided"] and holds(found)
    assert report(found).splitlines()[-1].startswith("unchanged") and "claim 2b" in report(found)
    path.write_text(path.read_text().replace("2a,x,holds", "2a,x,does not hold"))
    found = verify(against=str(theirs))
    assert not holds(found) and "1 claim turned round, the first claim 2a: holds, was does not hold" in verdict(found)
    assert as_json(found)["benchmarks"]["tiny"]["contrary_claims"]


def test_other_settings_are_a_difference_and_make_neither_side_less_whole(workspace):
    """Settings edited here, and all stages run again with them."""
    swap_text("benchmarks/tiny/benchmark.yaml", "repeats: 1", "repeats: 2")
    write_composed()
    edit("train-xs", lambda r: r["settings"]["gate"].update(repeats=2))
    accept_all()
    found = verify(against="HEAD")
    assert found[0].whole and not holds(found)
    said = "differs: 1 fact, the first tiny train-xs settings gate.repeats: 2, was 1"
    assert verdict(found, "HEAD") == said and "    differs: train-xs settings gate.repeats" in report(found)


def test_a_verdict_is_logged_in_one_line_after_those_that_are_there(workspace):
    with pytest.raises(ConfigError, match=r"log\.jsonl: nothing to log, since no stage has run again here"):
        log(Path("log.jsonl"), verify(), None)
    rerun("encode")
    for number, verdict_is in ((1, "reproduced"), (2, "not whole")):
        log(Path("log.jsonl"), verify(), None, "in a hurry")
        *_, line = map(json.loads, Path("log.jsonl").read_text().splitlines())
        assert line["verdict"].startswith(verdict_is) and line["holds"] == (number == 1)
        assert len(Path("log.jsonl").read_text().splitlines()) == number
        assert len(line["against"]) == 40 and line["note"] == "in a hurry" and "c0de" in line["commit"]
        (one,) = line["benchmarks"].values()
        assert one["differs"] == 0 < one["identical"] and len(one["devices"]) == 2
        flip(next(Path("results").rglob("*.png")))


# Where git does not say


DUBIOUS = """fatal: detected dubious ownership in repository at '/work'
To add an exception for this directory, call:

	git config --global --add safe.directory /work
"""
REFUSALS = {
    "dubious ownership": "git: detected dubious ownership in repository at '/work'; "
    "run git config --global --add safe.directory /work",
    "no git": "git cannot be started (No such file or directory); install git",
    "a zip download": "git: not a git repository",
}


@pytest.fixture(params=REFUSALS)
def refusal(request, workspace, tmp_path, monkeypatch):
    """What git says, or why it says nothing."""
    if request.param == "a zip download":
        shutil.rmtree(".git")
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    else:
        (tmp_path / "bin").mkdir()
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    if request.param == "dubious ownership":
        fake = tmp_path / "bin" / "git"
        fake.write_text(f"#!/bin/sh\n/bin/cat >&2 <<'END'\n{DUBIOUS}END\nexit 128\n")
        fake.chmod(0o755)
    return REFUSALS[request.param]


def test_what_git_does_not_give_is_not_compared_and_the_reason_is_said(refusal, capsys):
    assert main(["verify"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"not compared with HEAD: {refusal}") and "results are whole" in last
    assert main(["verify", "--against", "HEAD"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: HEAD: no folder, and {refusal}") and len(said.splitlines()) == 1


def test_a_folder_of_results_is_compared_without_git_and_an_edited_file_is_named(refusal, theirs, capsys):
    assert main(["verify", "--against", str(theirs)]) == 0
    write("results/tiny/notebooks/table2/table2.csv", "size,FID\nxs,1.3\n")
    assert main(["verify", "--against", str(theirs)]) == 1
    assert "results/tiny/notebooks/table2: is not what stage notebook@table2 wrote" in capsys.readouterr().out


def test_a_record_without_a_commit_says_why(refusal):
    made = provenance("cpu")
    assert made["commit"] is None and made["commit_missing"].startswith(refusal)


def test_a_record_names_its_commit(workspace):
    assert provenance("cpu")["commit"] == git("rev-parse", "HEAD") and "commit_missing" not in provenance("cpu")
    write("emigm/train.py", "y")
    assert provenance("cpu")["commit"].endswith("+changes")


# The command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tyni"], "unknown benchmark 'tyni'"),
        (["--seed", "3"], "--seed has no effect without --deep"),
        (["--note", "fast"], "--note has no effect without --log"),
    ],
)
def test_a_user_s_mistake_is_one_line(workspace, capsys, arguments, message):
    assert main(["verify", *arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and len(said.splitlines()) == 1


# Deep


def test_a_random_chunk_of_every_size_is_generated_and_scored_again(workspace, capsys):
    assert main(["verify", "--deep", "--seed", "3"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"generated again: tiny xs, N = (4|16), .*: same bytes, FID [\d.]+ again \(--seed 3\)", said)


def test_images_that_the_weights_do_not_give_are_refused(workspace, capsys):
    """The chain of checksums is forged along with the images; nothing but generating them again shows it."""
    from stored import write_samples

    from emigm.data.samples import SampleSet

    for folder in Path("samples/tiny/xs").glob("*/*"):
        samples = SampleSet(folder, 24)
        pixels, labels = samples.all()
        write_samples(folder, 255 - pixels, labels, 12, **samples.facts)
        index = f"{folder.as_posix()}/index.json"
        checksum = subprocess.check_output(["sha256sum", index], text=True).split()[0]
        edit(f"sample-xs-{folder.parent.name}", lambda r, i=index, c=checksum: r["outputs"].update({i: c}))
        edit("evaluate-xs", lambda r, i=index, c=checksum: r["inputs"].update({i: c}))
    accept_all()
    assert holds(verify())
    assert main(["verify", "--deep"]) == 1
    assert re.search("deep .*tiny xs.*: other images than those stored: .*%", capsys.readouterr().out)


def test_scores_that_the_images_do_not_give_are_refused(workspace, capsys):
    edit("evaluate-xs", lambda r: rescore(r, -1.0))
    accept_all()
    assert holds(verify(against="results"))
    assert main(["verify", "--deep", "--against", "results"]) == 1
    assert re.search("deep .*: fid is [0-9.]+ when scored again, but the record has", capsys.readouterr().out)


def test_another_machine_may_round_differently(workspace, capsys):
    from emigm.verify.deep import differing_pixels

    for stage in ("sample-xs-4", "sample-xs-16", "evaluate-xs"):
        edit(stage, lambda r: r["provenance"].update(device="CPU: another"))
    accept_all()
    assert main(["verify", "--deep", "--against", "results"]) == 0
    stored = np.full((2, 1, 8, 8), 100, np.uint8)
    rounded = stored.copy()
    rounded[0, 0, 0, 0] += 1
    assert differing_pixels(rounded, stored, True) and not differing_pixels(rounded, stored, False)
    assert differing_pixels(stored + 3, stored, False)


def test_weights_that_are_not_here_are_said(workspace, capsys):
    shutil.rmtree("models")
    assert main(["verify", "--deep"]) == 1
    assert "models/tiny/xs/seed" in capsys.readouterr().out
