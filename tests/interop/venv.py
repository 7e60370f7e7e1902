"""Environments for other projects' clients, which want packages that are not ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Venv:
    """An environment, and its programs."""

    def __init__(self, folder, *packages):
        """Make it in a new folder; skip the test where the packages can't be installed, but in CI.

        Args:
            folder: where.
            packages: the requirements to install, as pip expects them.
        """
        self._bin = folder / "bin"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = (folder / "bin" / "pip", "--disable-pip-version-check", "install", "-q")
        result = subprocess.run([*pip, *packages], capture_output=True, text=True)
        if result.returncode:
            if "CI" in os.environ:
                pytest.fail(result.stderr)
            pytest.skip(f"{packages[0]} can't be installed here")

    def program(self, name):
        return self._bin / name

    def run(self, program, *arguments):
        """Run one of its programs from the repository; return its output."""
        result = subprocess.run(
            [self._bin / program, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert result.returncode == 0, result.stdout
        return result.stdout
