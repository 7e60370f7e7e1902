"""The example application: which digit is in a picture."""

from pathlib import Path

PRETRAINED = Path(__file__).parent / "pretrained"
"""The bundled repository: a model that is installed with the package."""
