"""Processes that decode pictures for `score`: a core each, and a crash costs one picture."""

import io
from collections.abc import Sequence

from serving.images import Images
from serving.pictures.files import processes, read_or_reason
from serving.pictures.reader import from_picture
from serving.system.processes.mapping import mapped

_AHEAD = 32
"""Pictures that wait for the processes."""


class Decoders:
    """Decodes pictures for several threads; starts its processes with the first picture."""

    def __init__(self, num_processes: int) -> None:
        self._processes = processes(num_processes)

    def decode(self, contents: Sequence[bytes]) -> list[Images | str]:
        """Decode some picture files: (1, 784) uint8 each, or why it can't be read.

        Raises:
            ConfigurationError: Pillow or SciPy is not installed.
        """
        return list(mapped(self._processes, _decode, contents, _AHEAD))

    def close(self) -> None:
        """End the processes."""
        self._processes.close()


def _decode(content: bytes) -> Images | str:
    return read_or_reason(from_picture, io.BytesIO(content))
