"""What `dvc plots show` draws: one chart of all training curves, and one of FID, each with its labels."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from made_up import REPO

from emigm.records.summary import curves_table

SIZES = ("xs", "h")


CHARTS = {  # colour, x, y; the labels of axes and chart
    "curves.csv": ("size", "step", "loss", "training step", "training loss", "Training loss by size, mnist"),
    "scores.csv": ("budget", "parameters", "fid", "parameters", "FID", "FID and parameters, mnist"),
}


def test_a_chart_tells_its_lines_apart_by_colour_and_names_its_axes(tmp_path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    options = {"cwd": tmp_path, "env": environment, "check": True, "capture_output": True, "text": True}
    subprocess.run(["dvc", "init", "--quiet", "--no-scm"], **options)
    shutil.copytree(REPO / ".dvc" / "plots", tmp_path / ".dvc" / "plots", dirs_exist_ok=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy2(REPO / name, tmp_path)
    results = tmp_path / "results" / "mnist"
    results.mkdir(parents=True)
    curve = "step,loss,least,greatest\n100,0.30,0.29,0.31\n200,0.12,0.11,0.13\n"
    (results / "curves.csv").write_text(curves_table(dict.fromkeys(SIZES, curve)))
    rows = [f"{size},{n},{1000 * n},{n},{10 / n},0.1,0.1" for size in SIZES for n in (4, 16)]
    header = "size,budget,parameters,nfe,fid,fid_train_std,fid_sample_std"
    (results / "scores.csv").write_text("\n".join([header, *rows]))
    done = subprocess.run(["dvc", "plots", "show", "--json"], **options)
    charts = {Path(name).name: chart["content"] for name, (chart,) in json.loads(done.stdout)["data"].items()}
    assert charts.keys() == CHARTS.keys()
    for name, (colour, x, y, *labels) in CHARTS.items():
        spec, text, points = charts[name], json.dumps(charts[name]), charts[name]["data"]["values"]
        assert spec["encoding"]["color"]["field"] == colour and spec["encoding"]["x"]["field"] == x
        assert all(f'"{label}"' in text for label in labels) and "<DVC_" not in text
        assert len(points) == 4 and {point["size"] for point in points} == set(SIZES)
        assert all({colour, x, y, "rev"} <= set(point) for point in points)
        numbers = spec["data"]["format"]["parse"]  # DVC hands over text
        assert numbers.keys() >= {x, y} and all(float(point[key]) for point in points for key in numbers)
