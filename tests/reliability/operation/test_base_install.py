"""The base installation, in a venv of its own: the client works, the rest names its extra."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.commandline.installation import install
from tests.support.servers import running_server

ROOT = Path(__file__).parents[3]
PACKAGES = [path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the project without extras; the folder of its programs."""
    folder = tmp_path_factory.mktemp("base")
    source = folder / "source"  # a copy: a build leaves its traces in the tree
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install = [str(venv / "bin/python"), "-m", "pip", "--quiet", "install", str(source)]
    subprocess.run(install, check=True, timeout=300)
    return venv / "bin"


def run(programs: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": os.defpath, "HOME": str(programs.parent)}
    first, *rest = command
    return subprocess.run(
        [programs / first, *rest],
        capture_output=True, text=True, env=environment, cwd=programs.parent,
    )  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("digit-serving serve", "serve"),
        ("digit-serving info", "serve"),
        ("digit-serving classify seven.png", "pictures"),
        ("python -m training train", "train"),
        ("python -m training export", "train"),
        ("python -m training report", "train"),
        ("python -m benchmarks run", "bench"),
        (f"python -m benchmarks plot {ROOT}/benchmarks/results/bench.json", "bench"),
    ],
)
def test_what_needs_an_extra_names_it(programs: Path, command: str, extra: str) -> None:
    done = run(programs, *command.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"{install(extra)}\n")
    assert "Traceback" not in done.stderr


def test_programs_tell_their_version_and_help(programs: Path) -> None:
    for name in ("digit-serving", "python -m training", "python -m benchmarks"):
        assert run(programs, *name.split(), "--version").stdout.startswith(f"{name} 0")
        assert run(programs, *name.split(), "--help").returncode == 0


def test_client_works(programs: Path, models: Path) -> None:
    with running_server(models) as server:
        assert run(programs, "digit-serving", "info", "--target", server.address).returncode == 0
        assert run(programs, "digit-serving", "health", "--target", server.address).returncode == 0
