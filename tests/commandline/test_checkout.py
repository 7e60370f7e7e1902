import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import serving
from commandline import checkout

ROOT = Path(__file__).parents[2]


def test_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert serving.__version__ == checkout.version() == project["version"]


def test_version_works_in_a_checkout_that_is_not_installed() -> None:
    command = [sys.executable, "-S", "-c", "import serving; print(serving.__version__)"]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT)}
    output = subprocess.check_output(command, env=environment, text=True, cwd="/")
    assert output.strip() == checkout.version()


def test_commands_are_make_only_where_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert checkout.run("train", "export") == "`make train export`"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Makefile").touch()  # another project's
    expected = "`python -m training train` and `python -m training export`"
    assert checkout.run("train", "export") == expected
    assert checkout.run("serve") == "`python -m serving serve`"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_takes_gpu_for_cuda_and_refuses_others_in_one_line() -> None:
    steps = make("--dry-run", "DEVICE=gpu", "serve").stdout
    assert ".installed-gpu" not in steps
    refused = make("DEVICE=tpu", "help")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "DEVICE is cpu or cuda, not 'tpu'" in refused.stderr


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True)
