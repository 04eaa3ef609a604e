"""What the command line says of itself, and how it ends."""

import argparse
import shlex

import pytest

from emigm import cli


def verbs():
    (found,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    return found.choices


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
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "doctor", interrupted)
    assert cli.main(["doctor"]) == 130
    out, err = capsys.readouterr()
    assert not out and err.startswith("interrupted: ") and err.count("\n") == 1


def test_a_model_is_not_imported_into_a_folder_of_other_things(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert cli.main(["import", str(tmp_path / "weights.pth"), str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("holds other files than a model's (thesis.tex); name a new folder\n")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "thesis.tex").unlink()
    for name in ("model.safetensors", "config.json", ".model.safetensors.1.tmp"):  # a model, and what a kill left
        (tmp_path / name).touch()
    assert cli.main(["import", str(tmp_path / "weights.pth"), str(tmp_path)]) == 1
    assert "weights.pth: no such file" in capsys.readouterr().err


def test_a_model_folder_needs_no_import(tmp_path, capsys):
    (tmp_path / "config.json").touch()
    assert cli.main(["import", str(tmp_path), str(tmp_path / "again")]) == 1
    assert "a model folder already" in capsys.readouterr().err


def test_npz_names_the_sizes_and_budgets_there_are(capsys):
    assert cli.main(["npz", "imagenet256", "q", "16", "out.npz"]) == 1
    assert "unknown size of imagenet256 'q' (allowed: xs, s, b, l, h)" in capsys.readouterr().err
    assert cli.main(["npz", "imagenet256", "xs", "32", "out.npz"]) == 1
    assert "unknown budget of imagenet256 '32' (allowed: 16, 128)" in capsys.readouterr().err
