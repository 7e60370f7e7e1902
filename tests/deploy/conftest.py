"""The files of `deploy/` with the programs they are for; `make test-deploy` runs this folder."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from deploy.serve_edge import ENVOY
from serving.model.repository import PRETRAINED
from tests.deploy.replicas import Replicas, replicas_behind

ROOT = Path(__file__).parents[2]


def needed(program: str | Path, how: str) -> Path:
    """Find a program; skip where it is not installed, but never in CI."""
    path = shutil.which(program)
    if path is None:
        unavailable(f"needs {program}: {how}")
    return Path(path)


def unavailable(message: str) -> NoReturn:
    """Skip, but fail in CI."""
    if "CI" in os.environ:
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def models() -> Path:
    """The bundled model: nothing here is about training."""
    return PRETRAINED


@pytest.fixture(scope="session")
def program() -> Callable[[str, str], Path]:
    """Give a program of a Debian package, by both names."""
    return lambda name, package: needed(name, f"apt-get install {package}")


@pytest.fixture(scope="session")
def envoy() -> Path:
    return needed(ROOT / ENVOY, "make test-deploy")


@pytest.fixture
def replicas(envoy: Path, models: Path, tmp_path: Path) -> Iterator[Replicas]:
    """Two servers behind Envoy, for a test that changes them."""
    with replicas_behind(envoy, tmp_path / "edge", models) as replicas:
        yield replicas


@pytest.fixture(scope="package")
def shared(
    envoy: Path, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replicas]:
    """Two servers behind Envoy that tests share: leave them as they were."""
    with replicas_behind(envoy, tmp_path_factory.mktemp("shared") / "edge", models) as replicas:
        yield replicas
