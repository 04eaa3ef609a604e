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
