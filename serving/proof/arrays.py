"""The types of arrays, and of a run's inputs."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
"""An array for each input, by its name."""
