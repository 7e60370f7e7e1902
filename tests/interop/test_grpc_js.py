"""Node's gRPC client, which has only our .proto files, against our server."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

import grpc
import numpy as np
import pytest

pytestmark = pytest.mark.timeout(120)

HERE = Path(__file__).parent / "js"
PROTOS = Path(__file__).parents[2] / "protos"
TOLERANCE = 1e-5
"""Batches of other sizes add up in another order."""


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory):
    """A folder where node finds grpc-js."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs node and npm: apt-get install nodejs npm")
    folder = tmp_path_factory.mktemp("js")
    shutil.copy(HERE / "package.json", folder)
    command = ("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts")
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        if "CI" in os.environ:
            pytest.fail(result.stderr)
        pytest.skip("grpc-js can't be installed here")
    return folder


def test_grpc_js_gets_the_same_answers(node_folder, server, classifier, images):
    (node_folder / "images").write_bytes(images.tobytes())
    result = subprocess.run(
        ["node", HERE / "calls.js", server.address, PROTOS, "images"],
        cwd=node_folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    answers = json.loads(result.stdout)
    expected = classifier.classify(images)
    assert answers["classify"]["digits"] == expected.digits.tolist()
    assert answers["classify"]["model_version"] == expected.model_version
    assert answers["stream"] == expected.digits.tolist()
    given = np.array(answers["classify"]["probabilities"]).reshape(-1, 10)
    inferred = np.frombuffer(base64.b64decode(answers["infer"]), "<f4").reshape(-1, 10)
    for probabilities in (given, inferred):
        np.testing.assert_allclose(probabilities, expected.probabilities, atol=TOLERANCE)
    assert (answers["model"]["name"], answers["ready"]) == ("digits", True)
    assert answers["model"]["transport"] == server.facts["transport"]
    assert answers["refused"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
