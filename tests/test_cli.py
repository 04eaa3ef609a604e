"""What the command line says of itself, and how it ends."""

import argparse
import errno
import shlex
import shutil
from pathlib import Path

import pytest

from emigm import cli
from emigm.config.compose import composed_text

ROOT = Path(__file__).parents[1]


def verbs():
    (action,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of pipeline and benchmarks, with the working directory in a folder of it."""
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("*.lock", "*.jsonl"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy2(ROOT / name, tmp_path)
    (tmp_path / "notes" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notes" / "mine")
    return tmp_path


@pytest.mark.parametrize("name", verbs())
def test_every_verb_describes_its_arguments_and_gives_examples_that_parse(name):
    verb = verbs()[name]
    assert verb.description and all(action.help for action in verb._actions)
    heading, *examples = verb.epilog.splitlines()
    assert heading in ("example:", "examples:") and examples
    for example in examples:
        command, *arguments = shlex.split(example)
        assert (command, arguments[0]) == ("emigm", name)
        cli.parser().parse_args(arguments)


def test_an_interrupt_ends_in_one_line(monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("emigm.tools.doctor.doctor", interrupted)
    assert cli.main(["doctor"]) == 130
    out, err = capsys.readouterr()
    assert not out and err.startswith("interrupted: ") and err.count("\n") == 1


def test_a_disk_that_cannot_be_written_is_one_line(monkeypatch, capsys):
    def refused(*arguments):
        raise OSError(errno.EROFS, "Read-only file system", ".dvc/tmp")

    monkeypatch.setattr("emigm.tools.doctor.doctor", refused)
    assert cli.main(["doctor"]) == 1
    said = "error: .dvc/tmp: Read-only file system; make room or give write access, and type the same command again\n"
    assert capsys.readouterr().err == said


def test_a_verb_started_below_the_root_works_as_there_and_files_stay_where_the_user_is(checkout, refused, monkeypatch):
    against = []
    monkeypatch.setattr("emigm.verify.verify.verify", lambda names, other, **_: against.append(other) or [])
    Path("theirs").mkdir()
    assert cli.main(["verify", "mnist", "--against", "theirs", "--json", "verdict.json"]) == 0
    assert (checkout / "notes" / "mine" / "verdict.json").is_file() and Path.cwd() == checkout
    assert against == ["notes/mine/theirs"]
    monkeypatch.chdir("notes")
    assert "unknown benchmark 'mnst'; did you mean 'mnist'" in refused("doctor", "mnst")


def test_compose_writes_what_the_source_says_and_copies_of_the_pipeline(checkout, capsys):
    assert cli.main(["compose"]) == 0 and not capsys.readouterr().out
    source, params = Path("benchmarks/smoke/benchmark.yaml"), Path("benchmarks/smoke/params.yaml")
    source.write_text(source.read_text().replace("title: ", "title: My ", 1))
    with Path("dvc.yaml").open("a") as pipeline:
        pipeline.write("# changed\n")
    assert cli.main(["compose"]) == 0
    copies = sorted(p.parent.name for p in Path("benchmarks").glob("*/dvc.yaml") if "# changed" in p.read_text())
    assert "smoke" in copies and "evidence" not in copies
    assert capsys.readouterr().out.count(": written\n") == len(copies) + 1
    assert params.read_text(encoding="utf-8") == composed_text("smoke") and "title: My " in params.read_text()


@pytest.mark.parametrize("command", ["compose", "doctor mnist", "fetch"])
def test_outside_a_checkout_what_needs_one_says_where_to_run(tmp_path, monkeypatch, refused, command):
    monkeypatch.chdir(tmp_path)
    said = refused(*command.split())
    assert said == "error: benchmarks: no benchmarks; run from the repository's root or below"


def test_parity_and_bench_ask_for_the_clone_that_they_need(tmp_path, monkeypatch, refused):
    assert f"{tmp_path}: no models/emigm.py here; give a clone" in refused("parity", "--official", tmp_path)
    monkeypatch.setattr(cli, "__file__", "/usr/lib/python3/site-packages/emigm/cli.py")
    for command in (["parity", "--official", "x"], ["bench"]):
        assert "run it in a clone" in refused(*command)
