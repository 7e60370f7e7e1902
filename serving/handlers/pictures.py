"""Pictures of callers for handlers; decoded in processes that may crash, hang or take memory."""

import io
from collections.abc import Sequence

from serving.commandline.installation import not_installed
from serving.errors import InvalidRequest
from serving.tensors import Images


def decode(inputs: Sequence[Sequence[bytes | str]]) -> list[list[Images]]:
    """Decode the files of each input: (H, W, 3) uint8 each.

    Raises:
        InvalidRequest: one can't be read; the text says which, if there are several.
        ConfigurationError: Pillow is not installed.
    """
    return [[_decoded(file, at, len(files)) for at, file in enumerate(files)] for files in inputs]


def _decoded(file: bytes | str, at: int, number: int) -> Images:
    try:
        # Late: Pillow is an extra, and what is missing is said in an answer.
        from serving.pictures import decoder
    except ImportError as err:
        raise not_installed(err) from err
    try:
        content = file.encode() if isinstance(file, str) else file
        return decoder.read_colours(io.BytesIO(content))
    except InvalidRequest as err:
        raise type(err)(f"picture {at}: {err}" if number > 1 else str(err)) from err
