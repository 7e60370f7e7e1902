"""A repository in S3: a server with the image's packages beside a store that speaks S3."""

import os
import shutil
import subprocess
import time
import urllib.request

import pytest

from digit_classifier import Classifier
from tests.interop.venv import ROOT, Venv
from tests.support import published
from tests.support.servers import free_address, program, started

pytestmark = pytest.mark.timeout(600)

STORE = """
import sys
from moto.server import ThreadedMotoServer
host, port = sys.argv[1].split(":")
ThreadedMotoServer(host, int(port)).start()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    lock = str(ROOT / "requirements" / "serve.lock")
    return Venv(tmp_path_factory.mktemp("s3") / "venv", "--require-hashes", "-r", lock)


@pytest.fixture
def store(monkeypatch, tmp_path_factory):
    moto = Venv(tmp_path_factory.mktemp("moto") / "venv", "moto[server]")
    address = free_address()
    known = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}
    for name, value in {**known, "ENDPOINT_URL": f"http://{address}"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with program([moto.program("python"), "-c", STORE, address], **pipes) as process:
        assert "ready\n" in process.stdout
        yield f"http://{address}"
        process.kill()


UPLOAD = """
import sys, s3fs
system = s3fs.S3FileSystem()
system.put(sys.argv[1] + "/", "models/", recursive=True)
"""


def upload(venv, folder):
    subprocess.run([venv.program("python"), "-c", UPLOAD, folder], check=True)


def test_models_are_served_and_reloaded_from_s3(venv, store, models, images, tmp_path):
    urllib.request.urlopen(urllib.request.Request(f"{store}/models", method="PUT"), timeout=10)
    copy = tmp_path / "models"
    shutil.copytree(models, copy)
    upload(venv, copy)
    command = [venv.program("python"), "-m", "serving", "serve", "--models", "s3://models",
               "--port", "0", "--http-port", "off", "--metrics-port", "off", "--model-cache",
               str(tmp_path / "cache"), "--reload-interval", "0.5"]  # fmt: skip
    project = tmp_path / "project"  # as the image has it
    for name in ("serving", "digit_classifier"):
        shutil.copytree(ROOT / name, project / name)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    subprocess.run([venv.program("python"), "-m", "pip", "install", "--quiet", "--no-deps",
                    project], check=True)  # fmt: skip
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    with (
        started(command, env=environment, cwd=tmp_path) as server,
        Classifier.connect(server.address) as client,
    ):
        assert client.classify(images[:5]).model_version == "1"
        (copy / "digits" / "1").rename(copy / "digits" / "2")
        published.edit_manifest(copy / "digits", "2", lambda each: each.update(version="2"))
        upload(venv, copy)
        deadline_s = time.monotonic() + 20
        while client.classify(images[:5]).model_version != "2":
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
        assert server.stop() == 0
