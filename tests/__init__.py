"""The tests, of which two run at once."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads would take the other test's core
