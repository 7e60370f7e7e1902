import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import serving
from serving.commandline import installation
from training import commandline

ROOT = Path(__file__).parents[2]


def test_version_is_that_of_the_project():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert serving.__version__ == installation.version() == version


def test_version_works_in_a_checkout_that_is_not_installed():
    command = [sys.executable, "-S", "-c", "import serving; print(serving.__version__)"]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT)}
    output = subprocess.check_output(command, env=environment, text=True, cwd="/")
    assert output.strip() == installation.version()


def test_commands_are_make_only_where_that_works(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert installation.run("train", "export") == "`make train export`"
    assert commandline.serve(Path("models/digits")) == "`make serve`"
    served = "`.venv/bin/digit-serving serve --models m --model mine`"
    assert commandline.serve(Path("m/mine")) == served
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Makefile").touch()  # another project's
    expected = "`python -m training train` and `python -m training export`"
    assert installation.run("train", "export") == expected
    assert commandline.serve(Path("models/digits")) == "`digit-serving serve`"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_takes_gpu_for_cuda_and_refuses_others_in_one_line():
    steps = make("--dry-run", "DEVICE=gpu", "serve").stdout
    assert ".installed-gpu" not in steps
    refused = make("DEVICE=tpu", "help")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "DEVICE is cpu or cuda, not 'tpu'" in refused.stderr


def make(*arguments):
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True)
