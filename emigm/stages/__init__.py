"""One module for each stage of `dvc.yaml`: thin entry points, run as `python -m emigm.stages.<name>`.

A stage's `deps` in `dvc.yaml` list the project's modules it imports; a test compares the two.
"""
