"""KServe's REST client, unchanged, against our server, in a venv of its own."""

import pytest

from tests.interop.venv import Venv
from tests.support.servers import running_server

pytestmark = pytest.mark.timeout(600)

PACKAGES = ("kserve==0.21.0",)


@pytest.fixture(scope="session")
def venv(tmp_path_factory):
    return Venv(tmp_path_factory.mktemp("kserve") / "venv", *PACKAGES)


def test_kserve_client_works_unchanged(venv, models, samples):
    with running_server(models, "--http-port", "0") as server:
        venv.run("python", "-m", "tests.interop.kserve_calls", server.facts["http"], samples)
