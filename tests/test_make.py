"""`make`: what it asks for before it installs, and where it installs from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from loopback import Server

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "GIT_", "MAKE"))}


@pytest.fixture
def folder(tmp_path):
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make(folder, **environment):
    command = ["make", ".venv/.ready", f"PYTHON={sys.executable}"]
    environment = {**ENVIRONMENT, "GIT_CEILING_DIRECTORIES": str(folder.parent), **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_without_a_git_checkout_nothing_is_installed_and_the_remedy_is_named(folder):
    done = make(folder)
    assert done.returncode != 0 and "git clone the repository" in done.stderr
    assert "not a git repository" in done.stderr  # git's own reason
    assert not (folder / ".venv").exists()


def test_the_environment_is_made_from_the_index_that_pip_is_set_to(folder):
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-q", "--allow-empty", "-m", "x"],
        cwd=folder, check=True,
    )  # fmt: skip
    server, config = Server(), folder / "pip.conf"
    config.write_text(f"[global]\nindex-url = {server.url}/simple\nretries = 0\n")
    done = make(folder, PIP_CONFIG_FILE=str(config))
    server.shutdown()
    first = next(line for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line).split("==")[0]
    assert done.returncode != 0 and first in done.stderr
    assert {path for _, path in server.requests} == {f"/simple/{first}/"}  # nothing else, and no other index
    assert not (folder / ".venv" / ".ready").exists()
