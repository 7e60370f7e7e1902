"""Text of others, such as a file's name, on one line of a terminal or a log."""


def escape(text: str) -> str:
    """Escape control characters, such as a newline or a terminal's sequences, and lone bytes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
