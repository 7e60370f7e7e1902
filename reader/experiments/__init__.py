"""Instruments that measure the product and fit its detector; they are not installed."""

import os

# Each process works on one core, on arrays too small for the threads of OpenBLAS: they only wait.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
