"""Write the bill of materials of a lock file, as CycloneDX 1.6.

python -m deploy.sbom requirements/serve.lock > sbom.json
"""

import json
import re
import sys
import tomllib
from pathlib import Path

_PINNED = re.compile(r"(?m)^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)(.*(?:\n    --hash=.*)*)")
_ROOT = Path(__file__).parents[1]


def bill_of_materials(lock: str) -> dict[str, object]:
    """Return the document.

    Args:
        lock: the content of a lock file, with hashes. A package that is pinned for several versions
            of Python is listed with each of its versions.
    """
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": project["name"],
                "name": project["name"],
                "version": project["version"],
                "licenses": [{"license": {"id": project["license"]}}],
            }
        },
        "components": [_component(*found) for found in _PINNED.findall(lock)],
    }


def _component(name: str, version: str, rest: str) -> dict[str, object]:
    purl = f"pkg:pypi/{name.lower()}@{version}"
    # One of each file that may be installed; a component's own hashes would be those of one file.
    files = [
        {"type": "distribution", "url": purl, "hashes": [{"alg": "SHA-256", "content": digest}]}
        for digest in re.findall(r"--hash=sha256:([0-9a-f]{64})", rest)
    ]
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "externalReferences": files,
    }


if __name__ == "__main__":
    json.dump(bill_of_materials(Path(sys.argv[1]).read_text("utf-8")), sys.stdout, indent=1)
