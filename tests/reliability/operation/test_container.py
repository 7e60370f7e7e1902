"""The Containerfile's steps, each run for real in a clean directory.

Building the image needs a container engine and a registry, which tests can't count on; so the steps
are carried out here, below a folder that stands for the image's root.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import pytest

from digit_classifier import Classifier
from tests.serving.http.peer import HttpPeer
from tests.support.servers import RunningServer

ROOT = Path(__file__).parents[3]
ABSOLUTE = re.compile(r"(?<![\w.])/(app|build|models)(?=[/\s\"]|$)")


@dataclass
class Stage:
    """One image on its way, as a folder."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0"
    entry_point: list[str] = field(default_factory=list)
    health_check: list[str] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)

    def inside(self, text):
        """Put the image's absolute paths below its root."""
        return ABSOLUTE.sub(lambda match: f"{self.root}/{match[1]}", text)

    def run(self, command):
        if command.startswith("python "):  # the base image's
            command = shlex.quote(sys.executable) + command.removeprefix("python")
        result = subprocess.run(
            self.inside(command), shell=True, cwd=self.root, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"


def steps():
    lines = (ROOT / "Containerfile").read_text().replace("\\\n", "").splitlines()
    return [
        (line.split(None, 1)[0], line.split(None, 1)[1])
        for line in lines
        if line and not line.startswith("#")
    ]


def build(folder):
    """Carry out every step; return the last stage."""
    stages: dict[str, Stage] = {}
    stage = Stage(folder)
    for instruction, rest in steps():
        match instruction:
            case "FROM":
                name = rest.partition(" AS ")[2] or f"stage-{len(stages)}"
                stage = stages[name] = Stage(folder / name)
                stage.root.mkdir()
            case "COPY":
                *options, source, target = Template(rest).substitute(stage.arguments).split()
                origin = ROOT / source
                if options:
                    other = stages[options[0].removeprefix("--from=")]
                    origin = Path(other.inside(source))
                copy(origin, Path(stage.inside(target)))
            case "RUN":
                stage.run(rest)
            case "ENV":
                name, _, value = rest.partition("=")
                stage.environment[name] = value
            case "WORKDIR":
                stage.folder = stage.inside(rest)
            case "USER":
                stage.user = rest
            case "ENTRYPOINT":
                stage.entry_point = [stage.inside(word) for word in json.loads(rest)]
            case "ARG":
                name, _, value = rest.partition("=")
                stage.arguments[name] = value
            case "HEALTHCHECK":
                command = json.loads(rest.partition("CMD ")[2])
                stage.health_check = [stage.inside(word) for word in command]
            case "LABEL":
                assert rest.startswith("org.opencontainers.image.")
            case "EXPOSE":
                assert rest.isdecimal()
            case _:
                pytest.fail(f"this test does not know {instruction}")
    return stage


def copy(origin, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    if origin.is_dir():
        shutil.copytree(origin, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(origin, target)


@pytest.mark.timeout(600)
def test_steps_make_a_server_that_answers(models, images, tmp_path):
    image = build(tmp_path)
    assert re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", image.user), "not root, and a number"
    site = next(image.root.glob("app/venv/lib/*/site-packages"))
    installed = {path.name for path in site.iterdir()}
    assert {"onnxruntime", "h11", "PIL"} <= installed
    assert not installed & {"tensorflow", "keras", "matplotlib", "pytest", "pip", "setuptools"}
    before = everything_in(image.root)
    with running(image) as server, Classifier.connect(server.address) as client:
        assert len(client.classify(images[:3])) == 3
        picture = (ROOT / "docs" / "pictures" / "seven.png").read_bytes()
        reply = HttpPeer(server.facts["http"]).post("/v1/digits", picture)
        assert reply.json["digits"][0]["digit"] == 7
        assert (client.describe().test_accuracy or 0) > 0.99, "not the bundled model"
        health = [*image.health_check, "--target", server.address]
        assert subprocess.run(health, cwd=image.folder, env=image.environment).returncode == 0
        assert server.stop(signal.SIGTERM) == 0
    assert everything_in(image.root) == before, "wrote to its read-only root"
    shutil.copytree(models, image.root / "models")  # a volume
    with running(image) as server, Classifier.connect(server.address) as client:
        assert (client.describe().test_accuracy or 1) < 0.99, "not the model of the volume"


def everything_in(folder):
    return set(folder.rglob("*"))


@contextmanager
def running(image):
    """Start the image's entry point on a port that the kernel chooses."""
    hosts = ("SERVING_HOST", "SERVING_METRICS_HOST", "SERVING_HTTP_HOST")
    assert {image.environment[name] for name in hosts} == {"0.0.0.0"}
    own = dict.fromkeys(hosts, "127.0.0.1")
    ports = dict.fromkeys(("SERVING_PORT", "SERVING_METRICS_PORT", "SERVING_HTTP_PORT"), "0")
    process = subprocess.Popen(
        image.entry_point, cwd=image.folder,
        env={"PATH": os.defpath, **image.environment, **own, **ports},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield RunningServer(process, process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
