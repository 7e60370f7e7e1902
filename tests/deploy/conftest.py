"""The files of `deploy/` with the programs they are for; `make test-deploy` runs this folder."""

import os
import shutil
from pathlib import Path

import pytest

from deploy.serve_edge import ENVOY
from digit_classifier import PRETRAINED
from tests.deploy.replicas import replicas_behind

ROOT = Path(__file__).parents[2]


def needed(program, how):
    """Find a program; skip where it is not installed, but never in CI."""
    path = shutil.which(program)
    if path is None:
        unavailable(f"needs {program}: {how}")
    return Path(path)


def unavailable(message):
    """Skip, but fail in CI."""
    if "CI" in os.environ:
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def models():
    """The bundled model: nothing here is about training."""
    return PRETRAINED


@pytest.fixture(scope="session")
def program():
    """Give a program of a Debian package, by both names."""
    return lambda name, package: needed(name, f"apt-get install {package}")


@pytest.fixture(scope="session")
def envoy():
    return needed(ROOT / ENVOY, "make test-deploy")


@pytest.fixture
def replicas(envoy, models, tmp_path):
    """Two servers behind Envoy, for a test that changes them."""
    with replicas_behind(envoy, tmp_path / "edge", models) as replicas:
        yield replicas


@pytest.fixture(scope="package")
def shared(envoy, models, tmp_path_factory):
    """Two servers behind Envoy that tests share: leave them as they were."""
    with replicas_behind(envoy, tmp_path_factory.mktemp("shared") / "edge", models) as replicas:
        yield replicas
