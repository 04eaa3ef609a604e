"""What `dvc plots show` draws: one chart of all training curves, and one of FID, each with its labels."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_up import REPO

from emigm.records.summary import curves_table

SIZES = ("xs", "h")


@pytest.fixture(scope="module")
def charts(tmp_path_factory):
    """What DVC makes of a made-up default benchmark's charts."""
    root = tmp_path_factory.mktemp("plots")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    options = {"cwd": root, "env": environment, "check": True, "capture_output": True, "text": True}
    subprocess.run(["dvc", "init", "--quiet", "--no-scm"], **options)
    shutil.copytree(REPO / ".dvc" / "plots", root / ".dvc" / "plots", dirs_exist_ok=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy2(REPO / name, root / name)
    results = root / "results" / "mnist"
    results.mkdir(parents=True)
    curve = "step,loss,least,greatest\n100,0.30,0.29,0.31\n200,0.12,0.11,0.13\n"
    (results / "curves.csv").write_text(curves_table(dict.fromkeys(SIZES, curve)))
    rows = [f"{size},{n},{1000 * n},{n},{10 / n},0.1,0.1" for size in SIZES for n in (4, 16)]
    (results / "scores.csv").write_text(
        "size,budget,parameters,nfe,fid,fid_train_std,fid_sample_std\n" + "\n".join(rows)
    )

    done = subprocess.run(["dvc", "plots", "show", "--json"], **options)
    return {Path(name).name: chart for name, (chart,) in json.loads(done.stdout)["data"].items()}


@pytest.mark.parametrize(
    ("name", "colour", "x", "y", "labels"),
    [
        ("curves.csv", "size", "step", "loss", ("training step", "training loss", "Training loss by size, mnist")),
        ("scores.csv", "budget", "parameters", "fid", ("parameters", "FID", "FID and parameters, mnist")),
    ],
)
def test_a_chart_tells_its_lines_apart_by_colour_and_names_its_axes(charts, name, colour, x, y, labels):
    assert set(charts) == {"curves.csv", "scores.csv"}
    spec, text = charts[name]["content"], json.dumps(charts[name]["content"])
    assert spec["encoding"]["color"]["field"] == colour and spec["encoding"]["x"]["field"] == x
    assert all(f'"{label}"' in text for label in labels) and "<DVC_" not in text
    points = spec["data"]["values"]
    assert len(points) == 4 and {point["size"] for point in points} == set(SIZES)
    assert all({colour, x, y, "rev"} <= set(point) for point in points)
    numbers = spec["data"]["format"]["parse"]  # DVC hands over text
    assert numbers.keys() >= {x, y} and all(float(point[name]) for point in points for name in numbers)
