"""Picture files: which are taken for pictures, and decoders that keep quiet about damaged ones."""

import logging
import warnings

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp"),
    *(".avif", ".heic", ".heif"),
)
"""Files that are read in a folder; a file that the command line names may have any suffix."""


def silence_pillow() -> None:
    """Keep Pillow's remarks on damaged files off stderr: each file gets one line from us."""
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
