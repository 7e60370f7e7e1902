"""The image's command line, run in an empty folder; tests/reliability carries out every step."""

import json
import os
import re
import sys
import tomllib
from pathlib import Path

from digit_classifier import Classifier
from tests.support.servers import started

ROOT = Path(__file__).parents[3]
CONTAINERFILE = (ROOT / "Containerfile").read_text()


def test_image_starts_without_a_volume(images, tmp_path, monkeypatch):
    _, *arguments = json.loads(re.findall(r"^ENTRYPOINT (.*)", CONTAINERFILE, re.M)[0])
    settings = dict(re.findall(r"^ENV (SERVING_\w+)=(.*)", CONTAINERFILE, re.M))
    hosts = ("SERVING_HOST", "SERVING_METRICS_HOST", "SERVING_HTTP_HOST")
    ports = {"SERVING_HTTP_PORT": "8080", "SERVING_METRICS_PORT": "9090"}
    assert settings == dict.fromkeys(hosts, "0.0.0.0") | ports
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for port in ("SERVING_PORT", "SERVING_METRICS_PORT", "SERVING_HTTP_PORT"):
        monkeypatch.setenv(port, "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    os.symlink("/no/such/volume", "models")  # as in the image
    with started([sys.executable, *arguments]) as server:
        assert server.facts["metrics"].startswith("0.0.0.0:")
        assert server.facts["http"].startswith("http://0.0.0.0:")
        target = server.address.replace("0.0.0.0", "127.0.0.1")
        with Classifier.connect(target) as client:
            assert len(client.classify(images[:3])) == 3


def test_copies_of_remote_models_go_where_the_user_may_write():
    settings = dict(re.findall(r"^ENV (\w+)=(.*)", CONTAINERFILE, re.M))
    assert "--read-only --tmpfs /tmp " in CONTAINERFILE
    assert Path(settings["XDG_CACHE_HOME"]).is_relative_to("/tmp")


def test_context_is_what_is_copied():
    first, *lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    copied = re.findall(r"^COPY ([^-]\S*) ", CONTAINERFILE, re.M)
    lock = "requirements/${LOCK}.lock"
    assert lock in copied
    copied.remove(lock)
    copied += [lock.replace("${LOCK}", variant) for variant in ("serve", "serve-cuda")]
    assert first == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied)
    assert all((ROOT / name).exists() for name in copied)


def test_labels_are_the_projects():
    labels = dict(
        re.findall(r'^LABEL org\.opencontainers\.image\.(\w+)="(.*)"$', CONTAINERFILE, re.M)
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    expected = {"title": "name", "description": "description", "version": "version",
                "licenses": "license"}  # fmt: skip
    assert labels == {label: project[name] for label, name in expected.items()}
