"""Two test processes share two cores, so each keeps to one thread; and the places that many tests start from."""

import os
import shutil
from pathlib import Path

import pytest
from loopback import Server

os.environ.setdefault("OMP_NUM_THREADS", "1")
REPO = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty checkout with the repository's benchmarks, in which the test runs."""
    for name in ("benchmarks", "params.yaml", "dvc.yaml"):
        (tmp_path / name).symlink_to(REPO / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A checkout with made-up results of mnist, of smoke, a dry run, and of snapshots."""
    from made_up import write_results

    root = tmp_path_factory.mktemp("root")
    write_results(root)
    write_results(root, "smoke", dry_run=True, sizes={"xs": 30.0}, seeds=(0,), samples=(0,))
    write_results(root, "snapshots", sizes={"xs": 4.0, "s": 3.0, "b": 2.0}, snapshots=(0.2, 0.5, 1.0))
    return root


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    """A checkout with results of released weights against stored statistics: no baselines, gate or training FLOPs."""
    from made_up import checkout
    from test_compare import write_paper_results

    root = checkout(tmp_path_factory.mktemp("released"))
    write_paper_results(root)
    return root


@pytest.fixture
def refused(capsys):
    """Runs a command that ends in one line, an error, and returns that line."""
    from emigm import cli

    def run(*arguments):
        capsys.readouterr()
        assert cli.main([*map(str, arguments)]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1, said
        return said.rstrip("\n")

    return run


@pytest.fixture
def workspace(whole, tmp_path, monkeypatch):
    """A copy, to damage, of the folder that a test module has as `whole`."""
    folder = tmp_path / "workspace"
    shutil.copytree(whole, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The loopback server as the Hub, whose cache is empty."""
    server = Server()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()
