"""The version is pyproject.toml's; manifests, which can't read it there, name the same one."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NAMED = re.compile(r"digit-serving:(\d[\w.]*)|newTag: (\d[\w.]*)")


def test_the_reader_has_the_same_version():
    reader = tomllib.loads((ROOT / "reader" / "pyproject.toml").read_text())["project"]
    assert reader["version"] == VERSION


def test_manifests_name_the_version():
    files = subprocess.run(
        ["git", "ls-files", "deploy/*.yaml"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    found = ["".join(each) for name in files for each in NAMED.findall((ROOT / name).read_text())]
    assert len(found) >= 4
    assert set(found) == {VERSION}
