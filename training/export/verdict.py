"""The verdict on an exported graph: whether servers may batch its rows, found once at export.

`python -m training.export.verdict FOLDER` writes it anew into the manifest of a version, once the
rules have changed; servers believe only the verdict of their own rules.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.model.judging import judge
from serving.model.verdicts import rules_version
from serving.publishing.files import write_atomically
from serving.publishing.manifest import as_json


def entry(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Judge graphs by file name; return the manifest's field on them."""
    verdicts = {name: judge(data).document() for name, data in files.items()}
    return {"rules": rules_version(), "verdicts": verdicts}


def update(version_dir: Path) -> None:
    """Judge the files of a version again, and write the verdicts into its manifest."""
    manifest = version_dir / "manifest.json"
    document = json.loads(manifest.read_bytes())
    files = {name: (version_dir / name).read_bytes() for name in document["files"]}
    golden = document.pop("golden")  # the last field, since it is the longest
    document |= {"batching": entry(files), "golden": golden}
    write_atomically(manifest, as_json(document))


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        update(Path(folder))
