"""Two test processes share two cores, so each keeps to one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
