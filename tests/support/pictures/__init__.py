"""Pictures as bytes of files."""

import io


def encoded(picture, kind="PNG", **options):
    """Save one to memory."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
