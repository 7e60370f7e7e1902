"""curl and nghttp, which know HTTP/2 and nothing of gRPC, against our server."""

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import grpc
import numpy as np
import pytest

from digit_classifier.pb.digits.v1 import digits_pb2
from digit_classifier.wire import encode_request
from serving.protocols.framing import frame
from tests.support.raw import CLASSIFY

GRPC = ("-H", "content-type: application/grpc", "-H", "te: trailers")
NUM_IMAGES = 300


@pytest.fixture(scope="session")
def request_file(tmp_path_factory, images):
    """A framed ClassifyRequest, larger than a DATA frame and HTTP/2's first window."""
    path = tmp_path_factory.mktemp("request") / "body"
    path.write_bytes(frame(encode_request(images[:NUM_IMAGES].tobytes())))
    return path


def output_of(program, *arguments):
    """Run a program to its end; return its output."""
    if shutil.which(program) is None:
        pytest.skip("needs curl and nghttp: apt-get install curl nghttp2-client")
    result = subprocess.run([program, *arguments], capture_output=True, timeout=30)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_curl_gets_an_answer_and_its_trailers(server, request_file, tmp_path, classifier, images):
    body = tmp_path / "answer"
    url = f"http://{server.address}{CLASSIFY}"
    head = output_of("curl", "-sS", "--http2-prior-knowledge", "-D", "-", "-o", body,
                     "--data-binary", f"@{request_file}", *GRPC, url).decode()  # fmt: skip
    assert head.startswith("HTTP/2 200")
    assert "grpc-status: 0" in head.lower()
    answer = digits_pb2.ClassifyResponse.FromString(body.read_bytes()[5:])
    assert list(answer.digits) == classifier.classify(images[:NUM_IMAGES]).digits.tolist()


def test_nghttp_gets_an_answer_and_its_trailers(server, request_file):
    url = f"http://{server.address}{CLASSIFY}"
    log = output_of("nghttp", "-nv", "--no-push", "-d", request_file, *GRPC, url).decode()
    log = re.sub(r"\x1b\[[0-9;]*m", "", log)
    assert ":status: 200" in log
    assert "grpc-status: 0" in log


def test_curl_is_refused_in_words_it_understands(server):
    if server.facts["transport"] != "h2":
        pytest.skip("gRPC's core leaves such requests without an answer")
    url = f"http://{server.address}{CLASSIFY}"
    status = ("-sS", "-o", "/dev/null", "-w", "%{http_code} %{http_version}")
    assert output_of("curl", *status, "--http2-prior-knowledge", url) == b"405 2"
    asked = (*status, "--http2-prior-knowledge", "-d", "{}", url)
    assert output_of("curl", *asked) == b"415 2"
    assert output_of("curl", *status, "--http1.1", url) == b"505 1.1"


# Node's gRPC client, which has only our .proto files, against our server


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
