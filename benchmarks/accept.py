"""Accept code that leaves tests/test_golden.py alone for results that stand: `python benchmarks/accept.py FILE...`.

What `dvc commit --force` does for the pipeline files that are named, also where data, models and samples are not here:
the checksums of code and settings in dvc.lock become those of now. Stages that show numbers (summary, notebooks, pages)
are left out, since they take seconds and run again.
"""

import sys

from dvc.repo import Repo

SHOWING = ("summary", "notebook", "page")

with Repo(".") as repo:
    for target in sys.argv[1:]:
        for stage in repo.stage.load_all(target):
            if stage.name.split("@")[0] not in SHOWING:
                stage.save(allow_missing=True, run_cache=False)
                stage.dump(update_pipeline=False)
