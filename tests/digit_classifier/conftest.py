"""The command line, run in this process, and models of other classes."""

from tests.serving.cli.conftest import run
from tests.serving.conftest import other_models

__all__ = ["other_models", "run"]
