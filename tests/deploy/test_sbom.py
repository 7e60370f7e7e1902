"""The bill of materials lists the image's packages, and is valid by CycloneDX's schema."""

import json
import re
import subprocess
import sys

import pytest

from tests.deploy.conftest import ROOT, needed


@pytest.mark.parametrize("name", ["serve", "serve-cuda"])
def test_every_package_of_the_lock_is_listed_with_its_hashes(name):
    lock = ROOT / "requirements" / f"{name}.lock"
    output = subprocess.check_output([sys.executable, "-m", "deploy.sbom", lock], cwd=ROOT)
    components = json.loads(output)["components"]
    pinned = re.findall(r"(?m)^([\w.-]+)(?:\[.*\])?==(\S+)", lock.read_text())
    assert len(pinned) > 10
    assert [(each["name"], each["version"]) for each in components] == pinned
    assert len({each["bom-ref"] for each in components}) == len(components)
    hashes = [
        file["hashes"][0]["content"] for each in components for file in each["externalReferences"]
    ]
    assert hashes == re.findall(r"--hash=sha256:(\w+)", lock.read_text())
    check = (
        "import sys; from cyclonedx.validation.json import JsonStrictValidator as Validator;"
        "from cyclonedx.schema import SchemaVersion;"
        "sys.exit(Validator(SchemaVersion.V1_6).validate_str(sys.stdin.read()))"
    )
    python = needed(ROOT / ".venv-edge/bin/python", "make test-deploy")
    done = subprocess.run([python, "-c", check], input=output, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
