"""`emigm verify` on a tiny benchmark: results as the stages wrote them hold, every tampering is refused by name."""

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
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree
from test_evaluation import TREE

from emigm.cli import main
from emigm.config.benchmark import load_benchmark
from emigm.config.compose import write_composed
from emigm.config.errors import ConfigError
from emigm.records.summary import fid_table, metrics_tree, summaries
from emigm.verify.findings import at
from emigm.verify.pipeline import Pipeline, md5
from emigm.verify.verdict import as_json, holds, log, report, verdict
from emigm.verify.verify import verify

ROOT = Path(__file__).parents[1]
RECORDS = "results/tiny/records"
SOURCE = {k: v for k, v in TREE.items() if k not in ("name", "images_of")} | {
    "evaluation": {"images": 24, "seeds": [0, 1], "chunk": 12, "kid_subset": 20},
    "run": {"device": "cpu"},
    "gate": {"visible": [0, 8], "images": 32, "repeats": 1, "on_failure": "mark"},
    "notebooks": ["table2"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkout in which all stages of `tiny` have run, committed; a file stands for the table and for the page."""
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
        Path("benchmarks/tiny").mkdir(parents=True)
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
        table = Path("results/tiny/notebooks/table2")
        table.mkdir(parents=True)
        (table / "table2.csv").write_text("size,FID\nxs,81.3\n")
        (table / "table2.ipynb").write_text("{}")
        Path("results/tiny/README.md").write_text("# Tiny\n")
        write_lock(folder)
        Path(".gitignore").write_text("/data/\n/models/\n/samples/\n/.state/\n")
        git("init", "--quiet")
        git("add", "--all")
        git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "results")
    finally:
        os.chdir(here)
    return folder


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True, capture_output=True)


def write_lock(root: Path) -> None:
    """What `dvc repro` would write after all stages."""
    params = yaml.safe_load((root / "benchmarks/tiny/params.yaml").read_text())
    stages = {}
    for stage in Pipeline(root, "tiny").stages:
        entry = {"cmd": stage.cmd, "outs": [dvc_entry(root, p) for p in stage.outs]}
        entry["deps"] = [dvc_entry(root, p) if (root / p).exists() else {"path": p} for p in stage.deps]
        for file, key in stage.keys:
            entry.setdefault("params", {}).setdefault(file, {})[key] = at(params, key)
        stages[stage.name] = entry
    (root / "benchmarks/tiny/dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def dvc_entry(root: Path, path: str) -> dict:
    return {"path": path, "hash": "md5", "md5": md5(root / path), "size": 1}


@pytest.fixture
def workspace(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def edit(stage: str, change) -> None:
    """Change a record by hand."""
    path = Path(f"{RECORDS}/{stage}.json")
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record, indent=2) + "\n")


def relock(change) -> None:
    """Change what dvc.lock says of the training."""
    path = Path("benchmarks/tiny/dvc.lock")
    lock = yaml.safe_load(path.read_text())
    change(lock["stages"]["train@xs"])
    path.write_text(yaml.safe_dump(lock))


def problems() -> str:
    return "\n".join(p for one in verify() for p in one.findings.problems)


# Whole


def commit_all() -> str:
    git("add", "--all")
    git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--allow-empty", "-m", "more")
    return subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()


def list_as_earlier(commit: str) -> None:
    """List the results, and have their page written again."""
    Path("benchmarks/earlier.yaml").write_text(yaml.safe_dump({"tiny": {"commit": commit, "why": "It is the same."}}))
    read_as_it_is("benchmarks/earlier.yaml", "page")


def read_as_it_is(dependency: str, *stages: str) -> None:
    """Have dvc.lock say that stages read a file as it is now."""
    path = Path("benchmarks/tiny/dvc.lock")
    lock = yaml.safe_load(path.read_text())
    for stage in stages:
        deps = lock["stages"][stage]["deps"]
        deps[:] = [dvc_entry(Path(), dependency) if d["path"].endswith(dependency) else d for d in deps]
    path.write_text(yaml.safe_dump(lock))


@pytest.fixture
def changed_code(workspace):
    """The workspace, whose sampling code has changed since its stages ran, and the commit of the code that they ran,
    which the records of sampling name."""
    Path("emigm").mkdir()
    Path("emigm/sample.py").write_text("1\n")
    Path("benchmarks/claims.yaml").write_text("{}\n")
    then = commit_all()
    for budget in (4, 16):
        edit(f"sample-xs-{budget}", lambda r: r["provenance"].update(commit=then))
    write_lock(workspace)
    Path("emigm/sample.py").write_text("2\n")
    assert "emigm/sample.py: has changed since 2 stages (sample@xs-4, sample@xs-16) ran" in problems()
    return then


def of_tiny():
    (one,) = [one for one in verify() if one.name == "tiny"]
    return one


def test_results_of_earlier_code_are_whole_where_they_are_listed_with_its_commit(changed_code):
    list_as_earlier(changed_code)
    one = of_tiny()
    assert one.whole
    said = f"2 stages (sample@xs-16, sample@xs-4) ran the code of commit {changed_code[:7]}, since which have changed: "
    assert said + "emigm/sample.py. It is the same." in report([one])
    assert as_json([one])["benchmarks"]["tiny"]["earlier"] == one.findings.earlier
    assert verdict([one]).endswith("; by earlier code: tiny")


EXCUSED_NOT = {
    "code of no commit": lambda: Path("emigm/sample.py").write_text("3\n") and relist_lock(),
    "records of another commit": lambda: edit("sample-xs-4", lambda r: r["provenance"].update(commit="0" * 40)),
    "a record without a commit": lambda: edit("sample-xs-4", lambda r: r["provenance"].pop("commit")),
}


def relist_lock() -> None:
    """As though the stages had run with the code as it is now, under records that name the commit of another."""
    read_as_it_is("emigm/sample.py", "sample@xs-4", "sample@xs-16")
    Path("emigm/sample.py").write_text("2\n")


@pytest.mark.parametrize("change", EXCUSED_NOT)
def test_a_stage_stands_by_code_and_records_of_the_listed_commit_alone(changed_code, change):
    EXCUSED_NOT[change]()
    list_as_earlier(changed_code)
    assert "emigm/sample.py: has changed since" in problems()


def test_a_stage_does_not_stand_by_code_that_the_listed_commit_had_not_yet(changed_code):
    """One file that a commit lacks must not leave the others unchecked."""
    Path("emigm/pictures.py").write_text("1\n")  # since that commit
    read_as_it_is("emigm/pictures.py", "sample@xs-4")
    list_as_earlier(changed_code)
    assert "emigm/sample.py: has changed since stage sample@xs-4 ran" in problems()


def test_an_entry_of_earlier_code_excuses_nothing_but_code(changed_code):
    list_as_earlier(changed_code)
    assert of_tiny().whole
    Path("benchmarks/claims.yaml").write_text("{a: 1}\n")
    assert "benchmarks/claims.yaml: has changed since stage notebook@table2 ran" in problems()


def test_a_listed_commit_has_to_be_in_the_history(changed_code):
    list_as_earlier("a" * 40)
    for budget in (4, 16):
        edit(f"sample-xs-{budget}", lambda r: r["provenance"].update(commit="a" * 40))
    with pytest.raises(ConfigError, match=r"earlier.yaml: a{40} is no commit in the history of HEAD"):
        verify()


def test_where_the_history_is_not_here_earlier_code_is_named_as_unchecked(changed_code, tmp_path, monkeypatch):
    list_as_earlier(changed_code)
    commit_all()
    subprocess.run(["git", "clone", "--quiet", "--depth=1", Path.cwd().as_uri(), tmp_path / "shallow"], check=True)
    monkeypatch.chdir(tmp_path / "shallow")
    one = of_tiny()
    assert f"benchmarks/earlier.yaml (commit {changed_code[:7]})" in one.findings.unchecked
    assert not [p for p in one.findings.problems if "has changed since" in p]


def test_an_entry_of_earlier_code_for_no_benchmark_is_refused(workspace):
    Path("benchmarks/earlier.yaml").write_text(yaml.safe_dump({"tinny": {"commit": "a" * 40, "why": "x"}}))
    assert "benchmarks/earlier.yaml: tinny is no folder of benchmarks/ with a pipeline" in problems()


def test_a_chain_whose_later_stage_read_another_model_than_was_made_is_refused_without_the_models_too(workspace):
    shutil.rmtree("models")
    relock(lambda stage: stage["outs"][0].update(md5="0" * 32 + ".dir"))
    assert "stage sample@xs-4 read another models/tiny/xs than stage train@xs made" in problems()


def test_an_entry_of_earlier_code_that_is_none_is_named(changed_code):
    list_as_earlier("main")
    with pytest.raises(ConfigError, match=r"earlier.yaml: tiny.commit = 'main': must be the 40 digits of a commit"):
        verify()


def test_results_as_the_stages_wrote_them_are_whole(workspace, capsys):
    assert main(["verify"]) == 0
    said = capsys.readouterr().out
    assert "tiny\n  whole: 8 records" in said
    assert said.splitlines()[-1].startswith("unchanged: the 8 records are those of HEAD, and whole")


def test_the_checksum_of_a_folder_is_dvc_s(tmp_path):
    for name in ("b.txt", "a/c.txt", "a/é.txt", "a-b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "__pycache__").mkdir()
    tree = Tree()
    for file in tmp_path.rglob("*.txt"):
        tree.add(file.relative_to(tmp_path).parts, None, HashInfo("md5", md5(file)))
    tree.digest()
    (tmp_path / "__pycache__" / "x.pyc").write_text("ignored")
    assert md5(tmp_path) == tree.hash_info.value


def rescore(record, change: float) -> None:
    """Another FID in every run, and a summary that follows."""
    for scored in record["results"].values():
        for run, curve in zip(scored["runs"], scored["fid_by_images"], strict=True):
            run["fid"] += change
            curve["fid"]["24"] = run["fid"]
        scored["summary"] = summaries(scored["runs"])


def forge_fid() -> None:
    """A FID changed wherever it stands, so that nothing contradicts itself."""
    edit("evaluate-xs", lambda r: rescore(r, -1.0))
    records = {p.stem: json.loads(p.read_text()) for p in Path(RECORDS).glob("*.json")}
    Path("results/tiny/fid.csv").write_text(fid_table(["xs"], ["4", "16"], records))
    tree = metrics_tree(["xs"], ["4", "16"], records)
    Path("results/tiny/metrics.json").write_text(json.dumps(tree, indent=2) + "\n")


def fid_in_a_run(record) -> None:
    record["results"]["4"]["runs"][0]["fid"] = 0.5


def mean_beside_the_runs(record) -> None:
    record["results"]["4"]["summary"]["fid"]["mean"] = 0.5


def mean_beside_the_values(record) -> None:
    record["results"]["final_loss"]["mean"] = 0.1


def other_verdict_of_the_gate(record) -> None:
    record["results"]["context"]["passed"] ^= True


def baseline(record) -> None:
    record["results"]["baselines"]["class_shuffle"]["fid"]["mean"] = 99.0


def swap(a: str, b: str) -> None:
    first, second = Path(a).read_bytes(), Path(b).read_bytes()
    assert first != second
    Path(a).write_bytes(second)
    Path(b).write_bytes(first)


def flip(path: str) -> None:
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2] ^= 1
    Path(path).write_bytes(content)


def cut(path: str) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:-20])


def set_steps(record) -> None:
    record["settings"]["train"]["steps"] = 3


def set_reference(record) -> None:
    record["inputs"]["data/tiny/reference.npz"] = "0" * 64


def drop_inputs(record) -> None:
    record["inputs"] = {}


TAMPERINGS = {
    "a FID in a record": (lambda: edit("evaluate-xs", fid_in_a_run), ["evaluate-xs.json: 4: fid.mean is"]),
    "a mean beside its runs": (
        lambda: edit("evaluate-xs", mean_beside_the_runs),
        [r"evaluate-xs.json: 4: fid.mean is 0.5 in the summary, but the runs give \d"],
    ),
    "a mean beside its values": (
        lambda: edit("train-xs", mean_beside_the_values),
        ["train-xs.json: final_loss.mean is"],
    ),
    "a baseline": (lambda: edit("reference", baseline), ["reference.json: baselines.class_shuffle.fid.mean is 99"]),
    "the gate's verdict": (
        lambda: edit(
            "train-xs", lambda r: r["results"]["context"].update(passed=not r["results"]["context"]["passed"])
        ),
        ["train-xs.json: context.passed is"],
    ),
    "NFE": (lambda: edit("sample-xs-4", lambda r: r["results"].update(nfe=4.5)), ["sample-xs-4.json: nfe is 4.5"]),
    "settings of another commit": (
        lambda: edit("train-xs", set_steps),
        ["train-xs.json: made with settings.train.steps = 3, but the benchmark says 2"],
    ),
    "settings changed since": (
        lambda: Path("benchmarks/tiny/params.yaml").write_text(
            Path("benchmarks/tiny/params.yaml").read_text().replace("lr: 0.001\n    seeds", "lr: 0.002\n    seeds")
        ),
        ["train-xs.json: made with settings.train.lr = 0.001, but the benchmark says 0.002"],
    ),
    "another reference": (
        lambda: edit("evaluate-xs", set_reference),
        ["evaluate-xs.json: read another data/tiny/reference.npz"],
    ),
    "no inputs": (lambda: edit("sample-xs-4", drop_inputs), ["sample-xs-4.json: names nothing of what train-xs.json"]),
    "another record's name": (
        lambda: shutil.copy(f"{RECORDS}/sample-xs-4.json", f"{RECORDS}/sample-xs-16.json"),
        ["sample-xs-16.json: is the record of tiny sample-xs-4"],
    ),
    "a truncated record": (lambda: cut(f"{RECORDS}/evaluate-xs.json"), ["evaluate-xs.json: not valid JSON"]),
    "a record that is a list": (
        lambda: Path(f"{RECORDS}/encode.json").write_text("[]"),
        ["encode.json: holds a list"],
    ),
    "a record of another schema": (
        lambda: edit("encode", lambda r: r.update(schema=0)),
        ["encode.json: record schema 0"],
    ),
    "a record without its runs": (
        lambda: edit("evaluate-xs", lambda r: r["results"]["4"].pop("runs")),
        ["evaluate-xs.json: lacks what its stage writes .*runs"],
    ),
    "a run too few": (
        lambda: edit("evaluate-xs", lambda r: r["results"]["4"]["runs"].pop()),
        ["evaluate-xs.json: 4: has runs of the seeds"],
    ),
    "a missing record": (lambda: Path(f"{RECORDS}/reference.json").unlink(), ["records/reference.json: missing"]),
    "metrics.json": (
        lambda: Path("results/tiny/metrics.json").write_text("{}\n"),
        ["results/tiny/metrics.json: does not follow from the records"],
    ),
    "fid.csv": (lambda: cut("results/tiny/fid.csv"), ["results/tiny/fid.csv: does not follow from the records"]),
    "weights swapped": (
        lambda: swap(*(f"models/tiny/xs/seed{i}/model.safetensors" for i in (0, 1))),
        [f"models/tiny/xs/seed{i}/model.safetensors: is not the file that train-xs.json names" for i in (0, 1)],
    ),
    "reference statistics": (
        lambda: flip("data/tiny/reference.npz"),
        ["data/tiny/reference.npz: is not the file that reference.json names"],
    ),
    "a swapped grid": (
        lambda: swap("results/tiny/grids/xs-4.png", "results/tiny/grids/real.png"),
        [r"results/tiny/grids/xs-4.png: is not the file that sample-xs-4.json names"],
    ),
    "a file that no stage makes": (
        lambda: Path("results/tiny/best.csv").write_text("FID\n1.9\n"),
        ["results/tiny/best.csv: no stage makes it"],
    ),
}
"""Name -> (what is done, what is said): refused even where dvc.lock is made to agree."""
IN_LOCK = {
    "a FID wherever it stands": (forge_fid, [f"{RECORDS}/evaluate-xs.json: is not what stage evaluate@xs wrote"]),
    "a table's cell": (
        lambda: Path("results/tiny/notebooks/table2/table2.csv").write_text("size,FID\nxs,1.3\n"),
        [r"results/tiny/notebooks/table2: is not what stage notebook@table2 wrote.*\(changed: table2.csv\)"],
    ),
    "the page": (
        lambda: Path("results/tiny/README.md").write_text("# Better\n"),
        ["results/tiny/README.md: is not what stage page wrote"],
    ),
    "the time of a run": (
        lambda: edit("sample-xs-4", lambda r: r["provenance"].update(date="2020-01-01")),
        [f"{RECORDS}/sample-xs-4.json: is not what stage sample@xs-4 wrote"],
    ),
    "a chunk of images": (
        lambda: flip("samples/tiny/xs/4/train0-seed1/000012-000024.npz"),
        ["samples/tiny/xs/4: is not what stage sample@xs-4 wrote"],
    ),
    "a shard of latents": (
        lambda: flip("data/tiny/latents/train/latents-00000.npy"),
        ["data/tiny/latents: is not what stage encode wrote"],
    ),
    "a figure deleted": (lambda: Path("results/tiny/grids/xs-16.png").unlink(), ["grids/xs-16.png: missing"]),
    "another command": (
        lambda: relock(lambda entry: entry.update(cmd=entry["cmd"] + " --fast")),
        ["stage train@xs ran without the command python -m emigm.stages.train --params .*params.yaml --size xs, which"],
    ),
    "a dependency that was not there": (
        lambda: relock(lambda entry: entry["deps"].pop()),
        ["stage train@xs ran without the dependency .*, which dvc.yaml gives it; run dvc repro"],
    ),
    "a parameter that was not there": (
        lambda: relock(lambda entry: entry["params"]["benchmarks/tiny/params.yaml"].pop("benchmark.train")),
        ["stage train@xs ran without the parameter benchmark.train, which dvc.yaml gives it; run dvc repro"],
    ),
}
"""What contradicts nothing but dvc.lock."""


@pytest.mark.parametrize("name", TAMPERINGS)
@pytest.mark.parametrize("relocked", [False, True])
def test_what_is_tampered_with_is_refused_by_name(workspace, name, relocked, capsys):
    tamper, said = TAMPERINGS[name]
    tamper()
    if relocked and name != "a missing record":
        write_lock(workspace)
    found = problems()
    for what in said:
        assert re.search(what, found), found
    assert main(["verify", "tiny"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("not whole: ")


@pytest.mark.parametrize("name", IN_LOCK)
def test_what_contradicts_only_the_lock_file_is_refused_by_name(workspace, name):
    tamper, said = IN_LOCK[name]
    tamper()
    found = problems()
    for what in said:
        assert re.search(what, found), found


def leaves(tree, path=()):
    """Paths of everything in a JSON tree but the root."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from leaves(value, (*path, key))


@pytest.mark.parametrize("part", ["results", "settings", "inputs", "outputs", "stage"])
def test_any_part_of_any_record_dropped_or_replaced_is_refused_and_never_a_traceback(workspace, part):
    rng = random.Random(part)
    untouched = {path: path.read_text() for path in sorted(Path(RECORDS).glob("*.json"))}
    for path, text in untouched.items():
        places = [p for p in leaves(json.loads(text)) if p[0] == part]
        for place in rng.sample(places, min(3, len(places))):
            record = json.loads(text)
            *above, last = place
            node = record
            for key in above:
                node = node[key]
            new = rng.choice([None, "x", [], {}, -1.5, [[1]], {"mean": []}, {"values": [], "mean": 1}, "drop"])
            if new == node[last]:
                continue
            if new == "drop":
                del node[last]
            else:
                node[last] = new
            path.write_text(json.dumps(record, indent=2) + "\n")
            found = verify(against="HEAD")
            assert not holds(found) and path.name in "\n".join(found[0].findings.problems), (path, place, new)
            as_json(found), report(found)
        path.write_text(text)


def test_a_verdict_is_logged_in_one_line_after_those_that_are_there(workspace):
    with pytest.raises(ConfigError, match=r"log\.jsonl: nothing to log, since no stage has run again here"):
        log(Path("log.jsonl"), verify(), None)
    edit("encode", lambda r: r["provenance"].update(commit="c0de"))  # as if it had run again
    write_lock(workspace)
    for number, verdict_is in ((1, "reproduced"), (2, "not whole")):
        log(Path("log.jsonl"), verify(), None, "in a hurry")
        *_, line = map(json.loads, Path("log.jsonl").read_text().splitlines())
        assert line["verdict"].startswith(verdict_is) and line["holds"] == (number == 1)
        assert len(Path("log.jsonl").read_text().splitlines()) == number
        assert len(line["against"]) == 40 and line["note"] == "in a hurry"
        assert line["commit"] == "c0de"
        (one,) = line["benchmarks"].values()
        assert one["differs"] == 0 < one["identical"] and len(one["devices"]) == 2
        flip(next(Path("results").rglob("*.png")))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused_by_name(workspace, value):
    edit("evaluate-xs", lambda r: r["results"]["4"]["runs"][0].update(fid=value))
    assert f"{RECORDS}/evaluate-xs.json: its results hold NaN or infinity" in problems()
    json.dumps(as_json(verify()), allow_nan=False)


def test_a_flipped_bit_in_any_tracked_file_is_refused(workspace):
    for path in sorted(p for p in Path("results").rglob("*") if p.is_file()):
        whole = path.read_bytes()
        flip(path)
        assert not holds(verify()), path
        path.write_bytes(whole)
    assert holds(verify())


@pytest.mark.parametrize(
    "text", ["", "[]", "stages: []", "stages: {encode: {outs: [x]}}", "stages: {encode: 5}", "\x00"]
)
def test_a_damaged_lock_file_is_one_line(workspace, text, capsys):
    Path("benchmarks/tiny/dvc.lock").write_text(text)
    assert main(["verify"]) == 1
    out, err = capsys.readouterr()
    assert "dvc.lock" in out.splitlines()[-1] if out else len(err.splitlines()) <= 3 and "dvc.lock" in err


def test_an_edited_lock_entry_does_not_hide_what_later_stages_read(workspace):
    edit("sample-xs-4", lambda r: r["provenance"].update(date="2020-01-01"))
    path = Path("benchmarks/tiny/dvc.lock")
    lock = yaml.safe_load(path.read_text())
    for out in lock["stages"]["sample@xs-4"]["outs"]:
        out["md5"] = md5(Path(out["path"]))
    path.write_text(yaml.safe_dump(lock))
    assert f"{RECORDS}: has changed since 3 stages (summary, notebook@table2, page) ran" in problems()


def test_a_stage_that_has_not_run_is_named(workspace):
    path = Path("benchmarks/tiny/dvc.lock")
    lock = yaml.safe_load(path.read_text())
    del lock["stages"]["sample@xs-16"]
    path.write_text(yaml.safe_dump(lock))
    assert "benchmarks/tiny/dvc.lock: has no stage sample@xs-16" in problems()


def test_what_is_not_here_is_said_to_be_unchecked(workspace):
    for folder in ("data", "models", "samples"):
        shutil.rmtree(folder)
    found = verify()
    assert holds(found) and "models/tiny/xs/seed0/model.safetensors" in found[0].findings.unchecked
    assert re.search("not here, so not looked at: .* files of data/tiny, models/tiny, samples/tiny", report(found))


# Reproduced


def shifted(folder: Path, change) -> None:
    """The results again, as another machine might have made them."""
    path = folder / "tiny" / "records" / "evaluate-xs.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.fixture
def theirs(workspace, tmp_path):
    return Path(shutil.copytree("results", tmp_path / "theirs" / "results"))


def test_another_machine_s_results_within_the_margin_are_reproduced(workspace, theirs):
    shifted(theirs, lambda r: rescore(r, 0.01))
    found = verify(against=str(theirs))
    assert holds(found), report(found)
    assert re.fullmatch(r"reproduced: \d+ cells, \d+ identical, [2-9] within tolerance", verdict(found))
    assert "reproduced evaluate-xs 4 fid: " in report(found)
    assert verify(against=str(theirs.parent))[0].comparison == found[0].comparison


def test_a_fid_beyond_the_margin_differs_and_is_named(workspace, theirs, capsys):
    shifted(theirs, lambda r: rescore(r, 80.0))
    assert main(["verify", "--against", str(theirs), "--json", "found.json"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match(r"differs: \d+ of \d+ cells, the first tiny evaluate-xs (4|16) fid", last)
    tree = json.loads(Path("found.json").read_text())
    assert tree["holds"] is False and tree["verdict"] == last and tree["against"] == str(theirs)
    cell = next(c for c in tree["benchmarks"]["tiny"]["cells"] if c["cell"] == "evaluate-xs 4 fid")
    assert cell["status"] == "differs" and cell["reached"] > cell["margin"]


def scattered(record, spread: float) -> None:
    """Other runs: up with one sampling seed, down with the other."""
    for scored in record["results"].values():
        for run, curve in zip(scored["runs"], scored["fid_by_images"], strict=True):
            run["fid"] += spread if run["sample_seed"] % 2 else -spread
            curve["fid"]["24"] = run["fid"]
        scored["summary"] = summaries(scored["runs"])


def test_what_scatters_too_much_to_tell_is_neither_reproduced_nor_different(workspace, theirs, capsys):
    shifted(theirs, lambda r: scattered(r, 500.0))
    assert main(["verify", "--against", str(theirs), "--json", "found.json"]) == 1
    lines = capsys.readouterr().out.splitlines()
    text = (
        r"undecided: \d metrics? shown neither to be the same nor to differ, the first tiny evaluate fid, 2 cells of 2"
    )
    assert re.match(text, lines[-1])
    assert any(
        line.startswith("    undecided evaluate fid, 2 cells of 2 repetitions: mean difference") for line in lines
    )
    (one,) = json.loads(Path("found.json").read_text())["benchmarks"].values()
    assert {c["status"] for c in one["cells"] if c["cell"].startswith("evaluate-xs 4 fid")} == {"undecided"}
    assert {m["status"] for m in one["metrics"]} == {"undecided"} and one["metrics"][0]["reached"] > 1


def test_a_stranger_s_tampered_results_are_refused(workspace, theirs):
    shifted(theirs, mean_beside_the_runs)
    found = verify(against=str(theirs))
    assert not holds(found) and str(theirs) in found[0].findings.problems[0]
    assert "evaluate-xs.json: 4: fid.mean is 0.5" in found[0].findings.problems[0]


def test_cells_that_have_not_run_here_are_said(workspace, theirs):
    Path(f"{RECORDS}/evaluate-xs.json").unlink()
    found = verify(against=str(theirs))
    assert "evaluate-xs 16 fid" in found[0].comparison.missing and not holds(found)


def test_the_tracked_results_are_those_of_a_revision(workspace):
    edit("evaluate-xs", lambda r: rescore(r, 0.01))
    found = verify(against="HEAD")
    assert found[0].unchanged == 7 and found[0].comparison.of("reproduced")
    with pytest.raises(ConfigError, match="v9: neither a folder nor a revision"):
        verify(against="v9")


def test_results_that_no_revision_has_are_whole_but_not_compared(workspace):
    git("rm", "-r", "--quiet", "--cached", "results")
    git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "no results")
    found = verify()
    assert holds(found) and found[0].comparison is None
    assert re.fullmatch(r"whole: \d+ files .*, but HEAD has no records to compare with", verdict(found))
    with pytest.raises(ConfigError, match="HEAD: has no results of tiny"):
        verify(against="HEAD")


def test_claims_whose_verdict_changed_are_named_and_the_contrary_counts(workspace, theirs):
    verdicts = {"2a": "holds", "2b": "holds", "3a": "not decided"}
    for folder, changed in ((Path("results"), {}), (theirs, {"2b": "not decided"})):
        path = folder / "tiny" / "notebooks" / "table2" / "claims.csv"
        path.write_text("ID,Claim,Verdict\n" + "".join(f"{k},x,{v}\n" for k, v in (verdicts | changed).items()))
    write_lock(workspace)
    found = verify(against=str(theirs))
    assert found[0].claims == ["claim 2b: holds, was not decided"] and holds(found)
    assert report(found).splitlines()[-1].startswith("unchanged") and "claim 2b" in report(found)
    path.write_text(path.read_text().replace("2a,x,holds", "2a,x,does not hold"))
    found = verify(against=str(theirs))
    assert not holds(found) and "1 claim turned round, the first claim 2a: holds, was does not hold" in verdict(found)
    assert as_json(found)["benchmarks"]["tiny"]["contrary_claims"]


def test_other_settings_are_a_difference_and_make_neither_side_less_whole(workspace, theirs):
    """Settings edited here, and all stages run again with them."""
    source = Path("benchmarks/tiny/benchmark.yaml")
    source.write_text(source.read_text().replace("repeats: 1", "repeats: 2"))
    write_composed()
    edit("train-xs", lambda r: r["settings"]["gate"].update(repeats=2))
    write_lock(workspace)
    found = verify(against="HEAD")
    assert found[0].whole and not holds(found)
    assert verdict(found, "HEAD").startswith(
        "differs: the settings are not those of HEAD, the first tiny train-xs.json: settings.gate.repeats is 2 here, 1"
    )
    assert "other settings: train-xs.json" in report(found)
    assert as_json(found)["benchmarks"]["tiny"]["unlike_settings"] == found[0].unlike


def test_settings_of_the_other_side_that_cannot_be_read_are_no_damage_of_ours(workspace):
    path = Path("benchmarks/tiny/params.yaml")
    whole = path.read_text()
    path.write_text(whole.replace("kid_subset", "kid_subsets"))  # as an older revision may have it
    git("add", "--all")
    git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "other settings")
    path.write_text(whole)
    found = verify(against="HEAD")
    assert found[0].whole and not holds(found)
    assert "those of the other side cannot be read here" in verdict(found, "HEAD")


# The command line


def test_a_user_s_mistake_is_one_line(workspace, capsys):
    for arguments, message in (
        (["tyni"], "unknown benchmark 'tyni'"),
        (["--seed", "3"], "--seed has no effect without --deep"),
        (["--note", "fast"], "--note has no effect without --log"),
        (["--against", "nowhere"], "nowhere: neither a folder nor a revision"),
    ):
        assert main(["verify", *arguments]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ") and message in said and len(said.splitlines()) == 1


def test_a_folder_of_results_without_a_benchmark_is_named(workspace):
    Path("results/digits").mkdir()
    Path("results/digits/table.csv").write_text("1\n")
    Path("results/best.csv").write_text("1\n")
    found = problems()
    assert all(f"results/{name}: no stage of any benchmark makes it" in found for name in ("digits", "best.csv"))
    assert holds(verify(["tiny"]))


def test_a_pipeline_without_a_benchmark_is_verified_by_its_lock_file(workspace):
    """Such as that of the tables over all benchmarks, which reads their records."""
    folder, table = Path("benchmarks/evidence"), Path("results/evidence/notebooks/claims/claims.csv")
    folder.mkdir()
    table.parent.mkdir(parents=True)
    table.write_text("ID,Verdict\n2a,holds\n")
    stage = {"wdir": "../..", "matrix": {"notebook": "${notebooks}"}, "cmd": "x", "deps": [RECORDS]}
    stage["outs"] = [{"results/evidence/notebooks/${item.notebook}": {"cache": False}}]
    (folder / "dvc.yaml").write_text(
        yaml.safe_dump({"vars": [{"notebooks": ["claims"]}], "stages": {"notebook": stage}})
    )
    entry = {
        "cmd": "x",
        "outs": [dvc_entry(workspace, table.parent.as_posix())],
        "deps": [dvc_entry(workspace, RECORDS)],
    }
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"notebook@claims": entry}}))
    found = verify()
    assert [one.name for one in found] == ["evidence", "tiny"] and holds(found)
    assert verdict(verify(["evidence"])).startswith("whole: 2 files and folders as they were written")
    edit("encode", lambda r: r["provenance"].update(date="2020-01-01"))
    assert f"{RECORDS}: has changed since stage notebook@claims ran" in verify(["evidence"])[0].findings.problems[0]


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
    write_lock(workspace)
    assert holds(verify())
    assert main(["verify", "--deep"]) == 1
    assert re.search("deep .*tiny xs.*: other images than those stored: .*%", capsys.readouterr().out)


def test_scores_that_the_images_do_not_give_are_refused(workspace, capsys):
    forge_fid()
    write_lock(workspace)
    assert holds(verify(against="results"))
    assert main(["verify", "--deep", "--against", "results"]) == 1
    assert re.search("deep .*: fid is [0-9.]+ when scored again, but the record has", capsys.readouterr().out)


def test_another_machine_may_round_differently(workspace, capsys):
    from emigm.verify.deep import differing_pixels

    for stage in ("sample-xs-4", "sample-xs-16", "evaluate-xs"):
        edit(stage, lambda r: r["provenance"].update(device="CPU: another"))
    write_lock(workspace)
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
