"""`emigm verify` on a tiny benchmark: results as the stages wrote them hold, every tampering is refused by name."""

import contextlib
import itertools
import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import made_up
import numpy as np
import pytest
import yaml
from dvc.repo import Repo
from stored import FORK, ROOT, write_samples
from test_bad_input import leaves
from test_evaluation import TREE

from emigm.cli import main
from emigm.data.samples import SampleSet
from emigm.io import sha256
from emigm.records.record import provenance

RECORDS, PARAMS = "results/tiny/records", "benchmarks/tiny/params.yaml"
TABLE = "results/tiny/notebooks/table2/table2.csv"
EVALUATION = {"images": 24, "seeds": [0, 1], "chunk": 12, "cas_steps": 20, "reference": None, "clean_fid": False}
SOURCE = {k: v for k, v in TREE.items() if k not in ("name", "images_of")} | {
    "data": {"dataset": "digits", "holdout": 0.2, "flips": False},
    "evaluation": EVALUATION,
    "gate": {"visible": [0, 8], "images": 32, "repeats": 1, "on_failure": "mark"},
    **{"released": None, "run": {"device": "cpu"}, "weights": "trained", "notebooks": ["table2"]},
}
STAGES = ("prepare", "extractor", "encode", "reference", "train --size xs", "sample --size xs --budget 4",
          "sample --size xs --budget 16", "evaluate --size xs", "summary")  # fmt: skip


def run_stages():
    for command in STAGES:
        stage, *options = command.split()
        sys.argv = [stage, "--params", PARAMS, *options]
        runpy.run_module(f"emigm.stages.{stage}", run_name="__main__", alter_sys=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkout in which all stages of `tiny` have run, committed; files stand for code, the table and the page."""
    folder = tmp_path_factory.mktemp("whole")
    with contextlib.chdir(folder):
        for name in ("dvc.yaml", ".dvcignore"):
            shutil.copy(ROOT / name, name)
        ignored = "/data/\n/models/\n/samples/\n/.state/\n/.dvc/tmp/\n/.dvc/cache/\n"
        texts = {TABLE: "size,FID\nxs,81.3\n", "results/tiny/README.md": "# Tiny\n", ".gitignore": ignored}
        texts |= {str(Path(TABLE).with_suffix(".ipynb")): "{}", ".dvc/config": ""}
        for path, text in (texts | {"benchmarks/tiny/benchmark.yaml": yaml.safe_dump(SOURCE)}).items():
            write(path, text)
        assert main(["compose"]) == 0
        process = FORK.Process(target=run_stages)
        process.start()
        process.join()
        assert process.exitcode == 0
        accept_all()
        git("init", "--quiet")
        git("add", "--all")
        commit()
    return folder


@pytest.fixture
def theirs(workspace, tmp_path):
    return Path(shutil.copytree("results", tmp_path / "theirs" / "results"))


@pytest.fixture
def verify(workspace, capsys):
    """Runs the command; returns what it prints and writes, and what it found of `tiny`."""

    def run(*arguments):
        capsys.readouterr()
        status = main(["verify", *map(str, arguments), "--json", "../verdict.json"])
        said, tree = capsys.readouterr().out, json.loads(Path("../verdict.json").read_text())
        assert (status == 0) == tree["holds"] and said.splitlines()[-1] == tree["verdict"]
        one = SimpleNamespace(**tree["benchmarks"].get("tiny", {"problems": []}))
        problems = [problem for benchmark in tree["benchmarks"].values() for problem in benchmark["problems"]]
        assert bool(problems) == tree["verdict"].startswith("not whole: ")
        return SimpleNamespace(**tree, said=said, tiny=one, problems="\n".join(problems))

    return run


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def commit() -> None:
    git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "results")


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
    made_up.edit(results / "tiny", stage, change)


def relock(change) -> None:
    """Change what dvc.lock says of the stages."""
    path = Path("benchmarks/tiny/dvc.lock")
    lock = yaml.safe_load(path.read_text())
    change(lock["stages"])
    path.write_text(yaml.safe_dump(lock))


def swap_text(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(new.join(text.rsplit(old, 1)))


def flip(path) -> None:
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2] ^= 1
    Path(path).write_bytes(content)


def rescore(change: float, other: float | None = None):
    """Another FID in every run; with odd training seeds changed by `other`."""

    def edited(record):
        for scored in record["results"].values():
            for run, curve in zip(scored["runs"], scored["fid_by_images"], strict=True):
                run["fid"] += other if other is not None and run["train_seed"] % 2 else change
                curve["fid"]["24"] = run["fid"]

    return edited


# Whole


def test_results_as_the_stages_wrote_them_are_whole(verify):
    found = verify()
    assert found.holds and "tiny\n  whole: 8 records" in found.said
    said = "unchanged: the 8 records are those of HEAD, and whole; no stage has run"
    assert found.verdict.startswith(said)


ACCEPTED = [
    (lambda: edit("train-xs", lambda r: r["settings"]["train"].update(steps=3)),
     "train-xs.json: made with settings.train.steps = 3, but the benchmark says \\d+"),
    (lambda: edit("evaluate-xs", lambda r: r["inputs"].update({"data/tiny/reference.npz": "0" * 64})),
     "evaluate-xs.json: read another data/tiny/reference.npz than reference.json wrote"),
    (lambda: shutil.copy(f"{RECORDS}/sample-xs-4.json", f"{RECORDS}/sample-xs-16.json"),
     "sample-xs-16.json: is the record of tiny sample-xs-4"),
    (lambda: swap_text(f"{RECORDS}/evaluate-xs.json", "}\n", ""), f"{RECORDS}/evaluate-xs.json: not valid JSON"),
    (lambda: edit("encode", lambda r: r.update(schema=0)), "encode.json: record schema 0"),
    (lambda: edit("evaluate-xs", lambda r: r["results"]["4"]["runs"][0].update(fid=float("nan"))),
     "evaluate-xs.json: lacks what its stage writes .holds NaN"),
    (lambda: write("results/tiny/best.csv", "FID\n1.9\n"), "results/tiny/best.csv: no stage makes it"),
]  # fmt: skip
"""(What is done, what is said): refused even where it is accepted by `dvc commit`."""
IN_LOCK = [
    (lambda: edit("evaluate-xs", rescore(-1.0)),
     f"{RECORDS}/evaluate-xs.json: is not what stage evaluate@xs wrote, which .*dvc.lock lists; run dvc repro"),
    (lambda: Path(f"{RECORDS}/reference.json").unlink(), "records/reference.json: missing"),
    (lambda: write("emigm/train.py", "y"), "emigm/train.py: has changed since train@xs ran; run dvc repro"),
    (lambda: swap_text(PARAMS, "cas_steps: 20", "cas_steps: 19"),
     "dvc.lock: stage reference ran with another benchmark.evaluation; run dvc repro"),
    (lambda: relock(lambda stages: stages.pop("sample@xs-16")),
     "benchmarks/tiny/dvc.lock: has no stage sample@xs-16: it has not run"),
    (lambda: relock(lambda stages: stages["train@xs"].update(cmd="python")),
     "stage train@xs ran another command than dvc.yaml gives it; run dvc repro"),
    (lambda: relock(lambda stages: stages["train@xs"]["deps"].pop()),
     ": is a dependency without which train@xs ran; run dvc repro"),
    (lambda: relock(lambda stages: stages["train@xs"]["outs"].pop()), "stage train@xs lists no .*; run dvc repro"),
    (lambda: (shutil.rmtree("models"),
              relock(lambda stages: stages["train@xs"]["outs"][0].update(md5="0" * 32 + ".dir"))),
     "stage sample@xs-4 read another models/tiny/xs than stage train@xs made"),
]  # fmt: skip
"""What contradicts nothing but dvc.lock."""


@pytest.mark.parametrize(("tamper", "said"), [*ACCEPTED, *IN_LOCK], ids=lambda v: v if isinstance(v, str) else "")
def test_what_is_tampered_with_is_refused_by_name(verify, tamper, said):
    tamper()
    if (tamper, said) in ACCEPTED:
        accept_all()
    problems = verify("tiny").problems
    assert re.search(said, problems), problems


def test_a_flipped_bit_in_any_tracked_file_is_refused(verify):
    """Also where its size and time of change are those that DVC knows."""
    for path in sorted(p for p in Path("results").rglob("*") if p.is_file()):
        content, times = path.read_bytes(), path.stat()
        flip(path)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert not verify().holds, path
        path.write_bytes(content)
    assert verify().holds


PARTS = ("results", "settings", "inputs", "outputs", "stage")


def test_any_part_of_any_record_replaced_is_refused_and_never_a_traceback(verify):
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
        assert path.name in "\n".join(verify("--against", "HEAD").tiny.problems), (path, place, node[last])
        path.write_text(text)


@pytest.mark.parametrize("text", ["[]", "stages: []", "stages: {encode: {outs: [x]}}", "\x00"])
def test_a_damaged_lock_file_is_one_line(workspace, text, capsys):
    write("benchmarks/tiny/dvc.lock", text)
    assert main(["verify"]) == 1
    out, err = capsys.readouterr()
    assert "dvc.lock" in out.splitlines()[-1] if out else len(err.splitlines()) == 1 and "dvc.lock" in err


def test_what_is_not_here_or_large_is_said_to_be_unchecked(verify, monkeypatch):
    flip("samples/tiny/xs/4/train0-seed1/000012-000024.npz")
    with monkeypatch.context() as patch:
        patch.setattr("emigm.verify.pipeline.LARGEST", 1)
        found = verify()
        assert found.holds and "samples/tiny/xs/4 (large: with --deep)" in found.tiny.unchecked
        assert not verify("--deep").holds
    for folder in ("data", "models", "samples"):
        shutil.rmtree(folder)
    found = verify()
    assert found.holds and "models/tiny/xs" in found.tiny.unchecked
    assert re.search("not here, so not looked at: .* of data/tiny, models/tiny, samples/tiny", found.said)


def test_a_folder_of_results_without_a_benchmark_is_named(verify):
    write("results/digits/table.csv", "1\n")
    write("results/best.csv", "1\n")
    assert all(f"results/{name}: no stage makes it" in verify().problems for name in ("digits/table.csv", "best.csv"))
    assert verify("tiny").holds


def test_a_pipeline_without_a_benchmark_is_verified_by_its_lock_file(verify):
    """Such as that of the tables over all benchmarks, which reads their records."""
    stage = {"wdir": "../..", "matrix": {"notebook": "${notebooks}"}, "cmd": "x", "deps": [RECORDS]}
    stage["outs"] = [{"results/evidence/notebooks/${item.notebook}": {"cache": False}}]
    chain = {"vars": [{"notebooks": ["claims"]}], "stages": {"notebook": stage}}
    write("benchmarks/evidence/dvc.yaml", yaml.safe_dump(chain))
    write("results/evidence/notebooks/claims/claims.csv", "ID,Verdict\n2a,holds\n")
    accept_all("evidence")
    found = verify()
    assert found.holds and list(found.benchmarks) == ["evidence", "tiny"]
    assert verify("evidence").verdict.startswith("whole: 2 files and folders as they were written")
    edit("encode", lambda r: r["provenance"].update(date="2020-01-01"))
    assert f"{RECORDS}: has changed since notebook@claims ran" in verify("evidence").problems


# Reproduced


def test_another_machine_s_results_within_the_margin_are_reproduced(verify, theirs):
    edit("evaluate-xs", rescore(0.01), theirs)
    found = verify("--against", theirs)
    said = r"reproduced: (\d+) of (\d+) cells made again, (\d+) identical, (\d+) within their margin"
    again, cells, identical, within = map(int, re.fullmatch(said, found.verdict).groups())
    assert found.holds and again == identical + within < cells and within == 2
    assert found.tiny.stages_run_again == ["evaluate-xs"] and "reproduced evaluate-xs 4 fid: " in found.said
    assert verify("--against", theirs.parent).tiny == found.tiny
    (theirs / "tiny/records/encode.json").write_text("{")
    found = verify("--against", theirs)
    assert not found.holds and f"{theirs}: {RECORDS}/encode.json: not valid JSON" in found.problems


UNDECIDED = "undecided: 1 metric shown neither to be the same nor to differ, the first tiny evaluate fid: mean diff"


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        (rescore(80.0), "differs", r"differs: \d metrics?, the first tiny evaluate (clean_)?fid"),
        (rescore(500.0, -500.0), "undecided", UNDECIDED),
    ],
)
def test_what_differs_or_scatters_too_much_to_tell_is_named(verify, theirs, change, status, said):
    edit("evaluate-xs", change, theirs)
    found = verify("--against", theirs)
    assert not found.holds and re.match(said, found.verdict) and found.against == str(theirs)
    assert status in {metric["status"] for metric in found.tiny.metrics}
    cell = next(c for c in found.tiny.cells if c["cell"] == "evaluate-xs 4 fid")
    assert (abs(cell["ours"] - cell["theirs"]) > cell["margin"]) == (cell["status"] == "undecided")


def test_results_are_compared_with_a_revision_or_an_experiment(verify, refused):
    edit("evaluate-xs", rescore(0.01))
    accept_all()
    git("update-ref", f"refs/exps/ab/{'c' * 38}/warm-sloe", git("rev-parse", "HEAD"))
    for name in ("HEAD", "warm-sloe"):
        found = verify("--against", name)
        assert found.tiny.stages_run_again == ["evaluate-xs"] and found.verdict.startswith("reproduced")
    git("update-ref", f"refs/exps/ab/{'d' * 38}/warm-sloe", git("rev-parse", "HEAD"))
    for name, said in (("warm-sloe", "2 DVC experiments have this name"), ("v9", "neither a folder nor a revision")):
        assert f"{name}: {said}" in refused("verify", "--against", name)


def test_results_that_no_revision_has_are_whole_but_not_compared(verify, refused):
    git("rm", "-r", "--quiet", "--cached", "results")
    commit()
    found = verify()
    assert found.holds and not found.tiny.compared
    assert re.fullmatch(r"whole: \d+ files .*; HEAD has no records of tiny to compare with", found.verdict)
    assert "HEAD: has no results of tiny" in refused("verify", "--against", "HEAD")


def test_claims_whose_verdict_changed_are_named_and_the_contrary_counts(verify, theirs):
    text = "ID,Claim,Verdict\n2a,x,holds\n2b,x,holds\n3a,x,not decided\n"
    path = theirs / "tiny" / "notebooks" / "table2" / "claims.csv"
    write(Path(TABLE).with_name("claims.csv"), text)
    write(path, text.replace("2b,x,holds", "2b,x,not decided"))
    accept_all()
    found = verify("--against", theirs)
    assert found.holds and found.tiny.claims == ["claim 2b: holds, was not decided"]
    assert found.verdict.startswith("unchanged") and "claim 2b" in found.said
    swap_text(path, "2a,x,holds", "2a,x,does not hold")
    found = verify("--against", theirs)
    assert not found.holds and "1 claim turned round, the first claim 2a: holds, was does not hold" in found.verdict
    assert found.tiny.contrary_claims


def test_other_settings_are_a_difference_and_make_neither_side_less_whole(verify):
    """Settings edited here, and all stages run again with them."""
    swap_text("benchmarks/tiny/benchmark.yaml", "repeats: 1", "repeats: 2")
    main(["compose"])
    edit("train-xs", lambda r: r["settings"]["gate"].update(repeats=2))
    accept_all()
    found = verify("--against", "HEAD")
    said = "differs: 1 fact, the first tiny train-xs settings gate.repeats: 2, was 1"
    assert found.tiny.whole and found.verdict == said
    assert "    differs: train-xs settings gate.repeats" in found.said


def test_cells_of_stages_that_ran_are_counted_and_the_verdict_is_logged_after_those_that_are_there(verify, refused):
    logged = Path("log.jsonl")
    assert "log.jsonl: nothing to log, since no stage has run again here" in refused("verify", "--log", logged)
    edit("encode", lambda r: r["provenance"].update(commit="c0de"))  # run again with the same outcome
    accept_all()
    for number in (1, 2):
        found = verify("--log", logged, "--note", "in a hurry")
        line = json.loads(logged.read_text().splitlines()[-1])
        assert logged.read_text().count("\n") == number and line["holds"] == found.holds == (number == 1)
        assert line["verdict"] == found.verdict and found.verdict.startswith(("reproduced", "not whole")[number - 1])
        assert len(line["against"]) == 40 and line["note"] == "in a hurry" and "c0de" in line["commit"]
        again = [cell for cell in found.tiny.cells if cell["cell"].startswith("encode ")]
        (one,) = line["benchmarks"].values()
        assert one["differs"] == 0 < one["identical"] == len(again) and len(one["devices"]) == 2
        assert [cell for cell in found.tiny.cells if cell["made_again"]] == again
        cells = f"{len(again)} of {len(found.tiny.cells)} cells made again, {len(again)} identical"
        assert number == 2 or found.verdict == f"reproduced: {cells}"
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


@pytest.mark.parametrize("case", REFUSALS)
def test_where_git_says_nothing_the_reason_is_said_and_a_folder_of_results_is_compared(
    verify, refused, theirs, tmp_path, monkeypatch, case
):
    if case == "a zip download":
        shutil.rmtree(".git")
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    else:
        (tmp_path / "bin").mkdir()
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    if case == "dubious ownership":
        fake = tmp_path / "bin" / "git"
        fake.write_text(f"#!/bin/sh\n/bin/cat >&2 <<'END'\n{DUBIOUS}END\nexit 128\n")
        fake.chmod(0o755)
    found = verify()
    said = f"not compared with HEAD: {REFUSALS[case]}"
    assert not found.holds and found.verdict.startswith(said) and "results are whole" in found.verdict
    assert refused("verify", "--against", "HEAD").startswith(f"error: HEAD: no folder, and {REFUSALS[case]}")
    made = provenance("cpu")
    assert made["commit"] is None and made["commit_missing"].startswith(REFUSALS[case])
    assert verify("--against", theirs).holds
    write(TABLE, "size,FID\nxs,1.3\n")
    problems = verify("--against", theirs).problems
    assert "results/tiny/notebooks/table2: is not what stage notebook@table2 wrote" in problems


def test_a_record_names_its_commit(workspace):
    assert provenance("cpu")["commit"] == git("rev-parse", "HEAD") and "commit_missing" not in provenance("cpu")
    write("emigm/train.py", "y")
    assert provenance("cpu")["commit"].endswith("+changes")


def test_a_user_s_mistake_is_one_line(workspace, refused):
    assert "unknown benchmark 'tyni'" in refused("verify", "tyni")
    assert "--seed has no effect without --deep" in refused("verify", "--seed", 3)
    assert "--note has no effect without --log" in refused("verify", "--note", "fast")


# Deep


def test_a_random_chunk_of_every_size_is_generated_and_scored_again(verify):
    found = verify("--deep", "--seed", 3)
    said = r"generated again: tiny xs, N = (4|16), .*: same bytes, FID [\d.]+ again \(--seed 3\)"
    assert found.holds and re.search(said, found.said)
    shutil.rmtree("models")
    found = verify("--deep")
    assert not found.holds and "models/tiny/xs/seed" in found.problems


@pytest.mark.parametrize(
    ("change", "machine", "said"),
    [
        (lambda pixels: 255 - pixels, "another", "deep .*tiny xs.*: other images than those stored: .*% .* levels"),
        (lambda pixels: pixels ^ 1, "here", "deep .*tiny xs.*: other images than those stored: .*% of the pixel val"),
        (lambda pixels: pixels ^ 1, "another", ": same images within rounding .another machine., FID "),
    ],
    ids=["other images", "rounded here", "rounded elsewhere"],
)
def test_images_that_the_weights_do_not_give_are_refused_but_for_rounding_elsewhere(verify, change, machine, said):
    """The chain of checksums is forged along with the images; nothing but generating them again shows it."""
    for folder in Path("samples/tiny/xs").glob("*/*"):
        samples = SampleSet(folder, 24)
        pixels, labels = samples.all()
        forged = np.concatenate([change(pixels[:12]), pixels[12:]])
        write_samples(folder, forged, labels, 12, **samples.facts)
        written = {f"{folder.as_posix()}/index.json": sha256(folder / "index.json")}
        edit(f"sample-xs-{folder.parent.name}", lambda r, forged=written: r["outputs"].update(forged))
        edit("evaluate-xs", lambda r, forged=written: r["inputs"].update(forged))
    for stage in ("sample-xs-4", "sample-xs-16", "evaluate-xs") if machine == "another" else ():
        edit(stage, lambda r: r["provenance"].update(device="CPU: another"))
    accept_all()
    assert verify().holds
    found = verify("--deep", "--seed", 3)  # draws the first chunk
    assert found.holds == ("rounding" in said) and re.search(said, found.said)


def test_scores_that_the_images_do_not_give_are_refused(verify):
    edit("evaluate-xs", rescore(-1.0))
    accept_all()
    assert verify("--against", "results").holds
    found = verify("--deep", "--against", "results")
    assert not found.holds and re.search(r"deep .*: fid is [\d.]+ when scored again, but the record has", found.said)
