"""Do records say what they must: the benchmark's settings, and inputs that another record says it wrote? No torch.

That files are as they were written is DVC's to say (`emigm.verify.pipeline`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emigm.config.benchmark import Benchmark
from emigm.config.errors import ConfigError
from emigm.records.record import Record, differing, expected_records, read_record
from emigm.verify.cells import cells_of
from emigm.verify.pipeline import REMEDY, Findings, made


def readable_records(root: Path, folder: str, findings: Findings, label: str = "") -> dict[str, Record]:
    """Records of a `records` folder under `root` by stage; damaged ones are refused by name, after `label`."""
    records = {}
    for path in sorted((root / folder).glob("[!.]*.json")):
        try:
            record = read_record(path)
            if (record["stage"], record["benchmark"]) != (path.stem, path.parents[1].name):
                raise ConfigError(f"{path}: is the record of {record['benchmark']} {record['stage']}, under its name")
            for part in ("inputs", "outputs", "provenance"):
                dict.items(record[part])
            json.dumps(record["results"], allow_nan=False)
            cells_of({path.stem: record})
        except (ConfigError, KeyError, TypeError, AttributeError, ValueError, IndexError) as e:
            odd = "holds NaN or infinity" if "JSON compliant" in str(e) else f"{type(e).__name__}: {e}"
            problem = str(e) if isinstance(e, ConfigError) else f"{path}: lacks what its stage writes ({odd}); {REMEDY}"
            findings.refuse(problem.replace(f"{root}/", label))
        else:
            records[path.stem] = record
    return records


def check_records(
    benchmark: Benchmark, records: Mapping[str, Record], shared: Mapping[str, Record], where: str, findings: Findings
) -> None:
    """Refuse settings that are not the benchmark's, and inputs that are not what the stage before wrote.

    Args:
        benchmark: the settings that apply.
        records: of the benchmark, by stage.
        shared: records of the benchmark that makes the images and the extractor, where that is another.
        where: the folder they were read from, for messages.
        findings: what is wrong goes there.
    """
    for stage, expected in expected_records(benchmark).items():
        path = f"{where}/{stage}.json"
        if stage not in records:
            if not any(p.startswith(f"{path}:") for p in findings.problems):
                findings.refuse(f"{path}: missing; {REMEDY}")
            continue
        for name, ours, theirs in differing(expected, records[stage], listed=2):
            findings.refuse(f"{path}: made with {name} = {short(theirs)}, but the benchmark says {short(ours)}")
    written = {path: (s, c) for s, r in {**shared, **records}.items() for path, c in r["outputs"].items()}
    for stage, record in records.items():
        for path, checksum in record["inputs"].items():
            maker, expected = written.get(path, (None, None))
            if maker is None and made(path):
                findings.refuse(f"{where}/{stage}.json: read {path}, which no record says it wrote")
            elif maker is not None and checksum != expected:
                findings.refuse(f"{where}/{stage}.json: read another {path} than {maker}.json wrote; {REMEDY}")


def short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
