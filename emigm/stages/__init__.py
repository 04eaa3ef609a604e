"""One module for each stage of `dvc.yaml`: thin entry points, run as `python -m emigm.stages.<name>`.

A stage's `deps` in `dvc.yaml` list the project's modules it imports; a test compares the two.
"""

import os
import signal
import sys

STARTED_BY = os.getppid()
"""The process that started this one, noted before torch is imported, which takes seconds."""
if sys.argv[0] == "-m":  # `python -m emigm.stages.<name>` is on its way to its module
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C among the imports ends it without a traceback
